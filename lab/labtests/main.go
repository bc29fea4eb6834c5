// Labtests runs the tests on nested guests:
//
//	labtests [-programs SUITE] PACKAGE... [GO TEST FLAGS]
//
// With -programs the QEMU and the gdb of the tests are those of another suite of
// Debian, which are not installed.
//
// QEMU's emulation can kill a guest, or damage it (README, Limits). Of a test that
// failed with a dead guest nothing is known: it is run once more, on a fresh lab,
// until it says something or too many guests died. A test that failed while its
// guests lived has to pass twice then; a defect of nestdbg fails again. What was
// run again, and why, is in the last lines.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"nestdbg/lab"
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: labtests [-programs SUITE] PACKAGE... [GO TEST FLAGS]")
	}
	programs := flag.String("programs", "", "")
	flag.Parse()
	if flag.NArg() == 0 || strings.HasPrefix(flag.Arg(0), "-") {
		flag.Usage()
		os.Exit(2)
	}
	begin := time.Now()
	if err := useSuite(*programs); err != nil {
		fmt.Fprintln(os.Stderr, "labtests:", err)
		os.Exit(1)
	}
	s := suite{out: os.Stdout, run: goTest(flag.Args())}
	ok := s.all()
	fmt.Printf("labtests: %.0f s\n", time.Since(begin).Seconds())
	if !ok {
		os.Exit(1)
	}
}

// useSuite makes the tests find QEMU and gdb of another suite of Debian, unless its
// name is empty. Whatever runs one of the two looks for it in PATH.
func useSuite(name string) error {
	if name == "" {
		return nil
	}
	dir, err := lab.Programs(context.Background(), "", name, []lab.Program{
		{Package: "qemu-system-x86", Name: "qemu-system-x86_64"}, {Package: "gdb", Name: "gdb"},
	}, func(text string) { fmt.Println("labtests:", text) })
	if err != nil {
		return err
	}
	for _, program := range []string{"qemu-system-x86_64", "gdb"} {
		out, err := exec.Command(filepath.Join(dir, program), "--version").Output()
		if err != nil {
			return fmt.Errorf("%s of Debian %s does not run: %w", program, name, err)
		}
		version, _, _ := strings.Cut(string(out), "\n")
		fmt.Println("labtests: with", version)
	}
	return os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// goTest returns what runs the tests of packages, or those of these names, and hands
// over what "go test -json" prints.
func goTest(args []string) func(names []string, each func(event)) error {
	tool := os.Getenv("GO")
	if tool == "" {
		tool = "go"
	}
	return func(names []string, each func(event)) error {
		args := append([]string{"test", "-json", "-timeout=40m", "-count=1"}, args...)
		if names != nil {
			args = append(args, "-run", "^("+strings.Join(names, "|")+")$")
		}
		cmd := exec.Command(tool, args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		return errors.Join(events(out, each), cmd.Wait())
	}
}

// event is a line of "go test -json"; see "go doc test2json".
type event struct {
	Action  string
	Test    string
	Output  string
	Elapsed float64
}

// events reads what go test prints. A line that is no event is the go tool's own word.
func events(r io.Reader, each func(event)) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				e = event{Action: "output", Output: line}
			}
			each(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Labtests runs the tests on nested guests: labtests DIRECTORY [GO TEST FLAGS]
//
// QEMU's emulation can kill a guest, or damage it (README, Limits). Of a test that
// failed with a dead guest nothing is known: it is run once more, on a fresh lab,
// until it says something or too many guests died. A test that failed while its
// guests lived has to pass twice then; a defect of nestdbg fails again. What was
// run again, and why, is in the last lines.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintln(os.Stderr, "usage: labtests DIRECTORY [GO TEST FLAGS]")
		os.Exit(2)
	}
	begin := time.Now()
	s := suite{out: os.Stdout, run: goTest(os.Args[1], os.Args[2:])}
	ok := s.all()
	fmt.Printf("labtests: %.0f s\n", time.Since(begin).Seconds())
	if !ok {
		os.Exit(1)
	}
}

// goTest returns what runs the tests of a directory, or those of these names, and
// hands over what "go test -json" prints.
func goTest(dir string, flags []string) func(names []string, each func(event)) error {
	tool := os.Getenv("GO")
	if tool == "" {
		tool = "go"
	}
	return func(names []string, each func(event)) error {
		args := append([]string{"test", "-json", "-timeout=40m", "-count=1", dir}, flags...)
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

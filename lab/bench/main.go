// Program bench measures nestdbg on a real nested guest, next to what a person
// would use without it, and prints one table. docs/benchmarks.md explains it.
//
//	go run ./lab/bench
//	go run ./lab/bench -lab NAME    on a lab that is up, which stays up
//
// The exit status says whether everything could be measured, not whether every
// target was reached: that depends on the machine, and the table says it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"nestdbg/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// timeLimit bounds everything; on a quiet machine it takes a fifth of that.
const timeLimit = 15 * time.Minute

func run(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, timeLimit)
	defer stop()
	program := flag.String("nestdbg", "", "the program to measure (default: built from this source)")
	memory := flag.String("memory", "5G", "memory of L1; with 2816M or more it has a hole below 4 GiB")
	existing := flag.String("lab", "", "measure on this lab, which is up and has one VM")
	only := flag.String("only", "", "measure only the group of this name: frozen, scan, cold, symbols, files, attach, steps, hits, latency")
	symbols := flag.String("symbols", "", "directory with the kernels' vmlinux (default: the lab's, if it is downloaded)")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("there is no argument %q", flag.Arg(0))
	}
	dir, err := os.MkdirTemp("", "nd-") // short, for the paths of sockets
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	h, err := newHost(ctx)
	if err != nil {
		return err
	}
	b := &bench{dir: dir, nestdbg: *program, symbols: *symbols}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	size, err := lab.ParseSize(*memory)
	if err != nil {
		return err
	}
	labs := &labs{bench: b, existing: *existing, memory: size}
	defer labs.down()
	rows, err := measureAll(ctx, labs, *only)
	writeTable(os.Stdout, rows)
	fmt.Printf("\n%s\n", h.describe(labs.kernel))
	return err
}

// prepare builds the program, unless one was named, and writes gdb's script.
func (b *bench) prepare(ctx context.Context) error {
	if b.nestdbg == "" {
		b.nestdbg = filepath.Join(b.dir, "nestdbg")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.nestdbg, "nestdbg/cmd/nestdbg")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // the lab runs it as init of its machines
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build nestdbg: %w", err)
		}
	}
	if _, err := exec.LookPath("gdb"); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "dump.py"), []byte(dumpScript), 0o600)
}

// group is measurements that belong together.
type group struct {
	name    string
	measure func(context.Context, *bench) ([]row, error)
}

var groups = []group{
	{"frozen", measureFrozen},
	{"scan", func(ctx context.Context, b *bench) ([]row, error) { return b.measureScan(ctx) }},
	{"cold", func(ctx context.Context, b *bench) ([]row, error) { return b.measureCold(ctx) }},
	{"symbols", func(ctx context.Context, b *bench) ([]row, error) { return b.measureSymbols(ctx) }},
	{"files", func(ctx context.Context, b *bench) ([]row, error) { return b.measureFiles(ctx) }},
	{"attach", func(ctx context.Context, b *bench) ([]row, error) { return b.measureAttach(ctx) }},
	{"steps", func(ctx context.Context, b *bench) ([]row, error) { return b.measureSteps(ctx) }},
	{"hits", func(ctx context.Context, b *bench) ([]row, error) { return b.measureHits(ctx) }},
	{"latency", func(ctx context.Context, b *bench) ([]row, error) { return b.measureLatency(ctx) }},
}

// measureFrozen is what is measured while the machines stand still.
func measureFrozen(ctx context.Context, b *bench) ([]row, error) {
	return b.whileFrozen(ctx, func(f *frozen) (rows []row, err error) {
		for _, measure := range []func(context.Context) ([]row, error){f.measureDump, f.measureBulk, f.measureWords} {
			more, err := measure(ctx)
			if err != nil {
				return rows, err
			}
			rows = append(rows, more...)
		}
		return rows, nil
	})
}

// measureAll runs the groups, or only one. A group that fails is tried once more
// on a lab of its own: see labs.
func measureAll(ctx context.Context, l *labs, only string) (rows []row, err error) {
	for _, g := range groups {
		if only != "" && g.name != only {
			continue
		}
		begin := time.Now()
		more, e := l.measure(ctx, g)
		fmt.Fprintf(os.Stderr, "bench: %s: %.1f s\n", g.name, time.Since(begin).Seconds())
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", g.name, e))
			more = append(more, row{question: g.name, verdict: notMeasured, notes: []string{line(e.Error())}})
		}
		rows = append(rows, more...)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("there is no group %q", only)
	}
	return rows, err
}

// line is the first line of a text.
func line(s string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return first
}

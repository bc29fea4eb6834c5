package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"nestdbg/lab"
)

// attempts is how often a group of measurements, and a boot, is tried. QEMU 7.2's
// emulation can hang L2 when its CPU is stopped at the wrong moment, or lose a
// machine while it boots; neither is what is measured here.
const attempts = 2

// downLimit bounds the end of a lab.
const downLimit = 30 * time.Second

// labs gives the bench a lab that works.
type labs struct {
	bench    *bench
	existing string // name of a lab to use, "" to boot one
	memory   uint64 // of L1, bytes
	kernel   string // release of the last lab's kernels
}

// measure runs a group of measurements on a lab that answers.
func (l *labs) measure(ctx context.Context, g group) (rows []row, err error) {
	for try := 1; try <= attempts && ctx.Err() == nil; try++ {
		if err = l.up(ctx); err != nil {
			return nil, err
		}
		rows, err = g.measure(ctx, l.bench)
		if err == nil {
			// A guest that hangs has not been measured, but waited for.
			_, err = l.bench.ask(ctx, vm, "ping")
		}
		if err == nil {
			return rows, nil
		}
		fmt.Fprintf(os.Stderr, "bench: %s, attempt %d of %d: %v\n", g.name, try, attempts, err)
		if l.existing != "" {
			return rows, err
		}
		l.down()
	}
	return rows, errors.Join(err, ctx.Err())
}

// up finds or boots a lab, if there is none yet.
func (l *labs) up(ctx context.Context) (err error) {
	if l.bench.lab != nil {
		return nil
	}
	if l.existing != "" {
		l.bench.lab, err = lab.Open("", l.existing)
	} else {
		l.bench.lab, err = l.boot(ctx)
	}
	if err != nil {
		return err
	}
	l.kernel = l.bench.lab.Machine(lab.L1).Kernel.Release
	if l.bench.symbols == "" {
		l.bench.symbols = cachedSymbols(l.bench.lab)
	}
	return nil
}

func (l *labs) boot(ctx context.Context) (*lab.Lab, error) {
	o := lab.Options{
		Name: fmt.Sprintf("bench-%d", os.Getpid()), Memory: l.memory, Agent: l.bench.nestdbg,
		Progress: func(text string) { fmt.Fprintln(os.Stderr, "bench:", text) },
	}
	for try := 1; ; try++ {
		booted, err := lab.Up(ctx, o)
		var failed *lab.BootError
		if !errors.As(err, &failed) {
			return booted, err
		}
		end(failed.Lab)
		if try == attempts {
			return nil, fmt.Errorf("%w\n%s", err, failed.Tail)
		}
	}
}

// down ends the lab, if it is ours.
func (l *labs) down() {
	if l.bench.lab != nil && l.existing == "" {
		end(l.bench.lab)
	}
	l.bench.lab = nil
}

func end(l *lab.Lab) {
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	if err := l.Down(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// cachedSymbols is the directory with the vendor's vmlinux for a lab's kernels, ""
// if that was never downloaded.
func cachedSymbols(l *lab.Lab) string {
	// With a context that has ended nothing is downloaded.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir, err := l.SymbolsDir(ctx, lab.L1, "", func(string) {})
	if err != nil {
		return ""
	}
	return dir
}

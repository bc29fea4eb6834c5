package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"nestdbg/internal/kallsyms"
	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
)

const (
	symbolRounds     = 9
	exportRounds     = 3
	vendorRounds     = 2 // each takes half a minute
	lookupTarget     = time.Microsecond
	loadTarget       = 50 * time.Millisecond // for loadSymbols
	loadSymbols      = 200_000
	exportTarget     = 3 * time.Second
	openExportTarget = 1500 * time.Millisecond
)

// measureSymbols times the symbols of L2's kernel, in this process, and the file that gdb
// has them from.
func (b *bench) measureSymbols(ctx context.Context) ([]row, error) {
	v, err := b.look(ctx)
	if err != nil {
		return nil, err
	}
	defer v.close()
	m, err := v.Machine(vm)
	if err != nil {
		return nil, err
	}
	k, err := v.Kernel(m)
	if err != nil {
		return nil, err
	}
	rows, err := lookupRows(ctx, k)
	if err != nil {
		return rows, err
	}
	more, err := b.exportRows(ctx, k.Release)
	return append(rows, more...), err
}

// lookupRows are about the table: reading it, and every symbol by its name and address.
func lookupRows(ctx context.Context, k *linux.Kernel) ([]row, error) {
	table, err := k.Symbols()
	if err != nil {
		return nil, err
	}
	var list []kallsyms.Symbol
	for s := range table.All() {
		list = append(list, s)
	}
	const prime = 7919 // so that neighbours are not asked for one after the other
	missed := 0
	each := func(ask func(*kallsyms.Symbol) bool) func() error {
		return func() error {
			for i := range list {
				if !ask(&list[i*prime%len(list)]) {
					missed++
				}
			}
			return nil
		}
	}
	s, err := interleave(ctx, symbolRounds,
		contender{"load", timed(func() error { return loadTable(k) })},
		contender{"by name", timed(each(func(s *kallsyms.Symbol) bool { _, ok := k.Lookup(s.Name); return ok }))},
		contender{"by address", timed(each(func(s *kallsyms.Symbol) bool {
			_, ok := k.Symbolize(mem.Virt(s.Addr))
			return ok || uint64(s.Addr)-uint64(k.TextVA) >= k.Size // a number, not a place
		}))})
	if err == nil && missed > 0 {
		err = fmt.Errorf("%d symbols were not found again", missed)
	}
	if err != nil {
		return nil, err
	}
	load := s[0].best().cpu
	rows := []row{{
		question: "symbols of L2's kernel, loaded",
		ours:     fmt.Sprintf("%s, %d", brief(load), len(list)),
		target:   fmt.Sprintf("< %s, %d", brief(loadTarget), loadSymbols),
		verdict:  judge(load*loadSymbols < loadTarget*time.Duration(len(list))),
		notes:    []string{"from where VMCOREINFO says they are; by processor time", spread("loading", s[0])},
	}}
	for i, way := range []string{"a symbol of L2 by its name", "a symbol of L2 by its address"} {
		one := s[i+1].best().per(len(list)).cpu
		rows = append(rows, row{question: way, ours: brief(one), target: "< " + brief(lookupTarget), verdict: judge(one < lookupTarget),
			notes: []string{fmt.Sprintf("every one of %d, in no order; by processor time", len(list)), spread("all of them", s[i+1])}})
	}
	return rows, nil
}

// loadTable reads a kernel's table once more.
func loadTable(k *linux.Kernel) error {
	at := func(name string) uint64 {
		a, _ := k.VMCoreInfo.Symbol(name)
		return uint64(a)
	}
	_, err := kallsyms.Read(k, kallsyms.Hints{
		Names: at("kallsyms_names"), NumSyms: at("kallsyms_num_syms"), TokenTable: at("kallsyms_token_table"),
		TokenIndex: at("kallsyms_token_index"), Offsets: at("kallsyms_offsets"), RelativeBase: at("kallsyms_relative_base"),
		Stext: at("_stext"),
	})
	return err
}

// exportRows are about the file: writing it, and gdb's first answer from it and from the
// vendor's. Its place is memory: see measureFiles.
func (b *bench) exportRows(ctx context.Context, release string) (rows []row, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(b.lab.MemoryFile), "nd-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "vmlinux")
	export := []string{"-t", fmt.Sprint(b.lab.PID), "export", "vmlinux", "-m", vm, "-o", file}
	s, err := interleave(ctx, exportRounds, b.writer("export", file, b.nestdbg, export...))
	if err != nil {
		return nil, err
	}
	best := s[0].best()
	rows = append(rows, row{
		question: "export vmlinux of L2", ours: brief(best.wall), target: "< " + brief(exportTarget),
		verdict: judge(best.wall < exportTarget), notes: []string{spread("nestdbg, with its start", s[0])},
	})
	if text, err := exec.CommandContext(ctx, b.nestdbg, export...).CombinedOutput(); err != nil {
		return rows, fmt.Errorf("%w: %s", err, line(string(text)))
	}
	ours, err := interleave(ctx, exportRounds, openInGDB(file))
	if err != nil {
		return rows, err
	}
	open := ours[0].best()
	r := row{
		question: "gdb opens that, to its first answers", ours: brief(open.wall), target: "< " + brief(openExportTarget),
		verdict: judge(open.wall < openExportTarget), notes: []string{spread("gdb, with its start", ours[0])},
	}
	vendor := filepath.Join(b.symbols, "boot", "vmlinux-"+release)
	if _, err := os.Stat(vendor); b.symbols == "" || err != nil {
		r.theirs = `not compared: no vendor's vmlinux ("nestdbg lab symbols")`
		return append(rows, r), nil
	}
	theirs, err := interleave(ctx, vendorRounds, openInGDB(vendor))
	if err != nil {
		return rows, err
	}
	r.theirs = brief(theirs[0].best().wall) + ", the vendor's"
	r.ratio = fmt.Sprintf("%.0f", theirs[0].best().wall.Seconds()/open.wall.Seconds())
	r.notes = append(r.notes, spread("gdb with the vendor's, which has lines and locals too", theirs[0]))
	return append(rows, r), nil
}

// openInGDB is gdb that opens a file and says something of a function and a type of it,
// without what it keeps of files between its runs.
func openInGDB(file string) contender {
	return contender{"gdb " + file, func(ctx context.Context) (timing, error) {
		cmd := exec.CommandContext(ctx, "gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set index-cache enabled off",
			"-ex", "info address schedule", "-ex", "print sizeof(struct task_struct)", file)
		begin := time.Now()
		text, err := cmd.CombinedOutput()
		if err != nil {
			return timing{}, fmt.Errorf("%w: %s", err, line(string(text)))
		}
		return timing{wall: time.Since(begin), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
	}}
}

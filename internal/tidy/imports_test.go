package tidy

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// allowed says what each package may import besides the standard library, from
// the lowest tier up. It is policy, not a description: do not change it to make
// a build work. A new edge is a commit of its own that changes this table and
// says why. A planned package may have its row before its code.
//
// Packages are named by directory, without internal/. A module of others that
// is in no row may be used nowhere.
var allowed = map[string]string{
	"mem":  "",
	"arch": "golang.org/x/arch/x86/x86asm",

	"rsp":     "",
	"qmp":     "",
	"vmstate": "mem arch",
	// The methods by which pages of a dump are compressed; the other one it has itself.
	"dump": "mem arch github.com/klauspost/compress/zlib github.com/klauspost/compress/snappy " +
		"github.com/klauspost/compress/zstd",
	"paging":   "mem arch",
	"svm":      "mem arch",
	"vmx":      "mem arch",
	"kallsyms": "mem arch",
	"orc":      "mem arch",
	"printk":   "mem arch",
	"btf":      "",
	"cexpr":    "mem",

	// What one vmlinux says to gdb: sections, symbols, types as BTF and unwinding
	// as ORC tables say it.
	"symfile":   "mem arch orc btf",
	"debugfile": "",
	"snapshot":  "mem golang.org/x/sys/unix",
	// The bytes of what dump and vmstate understand: mapped, or read page by page.
	"memfile": "mem arch dump vmstate golang.org/x/sys/unix",

	"gdbserver": "mem arch rsp",
	"qemu":      "mem arch rsp qmp vmstate golang.org/x/sys/unix",

	"machine": "mem arch paging",
	"linux":   "mem arch kallsyms orc printk btf cexpr",
	"nested":  "mem arch machine paging svm vmx linux",
	// What gdb is told of one kernel: its facts (linux) in gdb's form (symfile).
	"kernelfile": "mem arch linux symfile",

	// It judges what kernels say of themselves.
	"watch": "linux",

	"session": "mem arch machine nested linux kernelfile debugfile gdbserver",
	// The one place that knows both QEMU and the session.
	"target": "mem arch machine session qemu vmstate snapshot memfile",
	"report": "mem arch machine paging nested linux session cexpr snapshot",
	// debugfile: only the front end knows whether the person wants servers asked.
	// kernelfile: "export" writes its files where the person says.
	"cli": "mem machine paging linux cexpr kernelfile debugfile dump gdbserver session target report snapshot watch lab lab/agent " +
		"github.com/spf13/cobra golang.org/x/sys/unix",
	"cmd/nestdbg": "cli",

	// The lab knows nothing of the debugger. The agent is the part of it that
	// runs inside the machines.
	"lab/wire":  "",
	"lab/agent": "lab/wire golang.org/x/sys/unix",
	"lab": "lab/wire lab/agent golang.org/x/sys/unix golang.org/x/sync/errgroup " +
		"github.com/klauspost/compress/zstd github.com/ulikunitz/xz",

	"lab/labtests": "lab",

	// Everything together, on real machines.
	"lab/tests":      everything,
	"lab/bochstests": everything,
	"lab/bench":      everything,

	"tidy": "",
}

const everything = "*"

// allowedInTests is what the tests of a package may import more than the package.
var allowedInTests = map[string]string{
	"linux": "paging",         // its fake machine has real page tables
	"cli":   "nested svm vmx", // its command lines are run on made-up machines with guests
}

// testModules are modules for tests, and for packages that help tests. cilium's BTF
// is the second opinion on ours; the comment of package btf says why it is no more.
var testModules = []string{"github.com/google/go-cmp", "github.com/rogpeppe/go-internal", "github.com/cilium/ebpf"}

// helps returns the package that a package of fakes and builders is for.
func helps(dir string) (faked string, ok bool) {
	faked, name := path.Split(dir)
	faked = strings.TrimSuffix(faked, "/")
	return faked, faked != "" && name == path.Base(faked)+"test"
}

// checkImports compares a file's imports with the tables.
func checkImports(f *file) []string {
	dir := f.dir()
	faked, isHelper := helps(dir)
	row, known := allowed[dir]
	if isHelper {
		row, known = allowed[faked]+" "+faked, true
	}
	if !known {
		return []string{"package " + dir + " has no row in the table of allowed imports"}
	}
	may := strings.Fields(row)
	if f.isTest() {
		may = append(may, dir)
		may = append(may, strings.Fields(allowedInTests[dir])...)
	}
	var problems []string
	for _, spec := range f.code.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the compiler says it better
		}
		if !mayImport(name, may, f.isTest() || isHelper) {
			problems = append(problems, fmt.Sprintf("%s may not import %s", dir, name))
		}
	}
	return problems
}

func mayImport(name string, may []string, forTests bool) bool {
	own, ours := strings.CutPrefix(name, "nestdbg/")
	if ours {
		name = short(own)
	}
	first, _, _ := strings.Cut(name, "/")
	switch {
	case !ours && !strings.Contains(first, "."):
		return true // the standard library
	case slices.Contains(may, name) || slices.Contains(may, everything):
		return true
	case !forTests:
		return false
	case ours:
		_, helper := helps(name)
		return helper
	}
	return slices.ContainsFunc(testModules, func(m string) bool { return strings.HasPrefix(name+"/", m+"/") })
}

func TestImports(t *testing.T) { each(t, goFile, checkImports) }

func TestImportsFires(t *testing.T) {
	fires(t, checkImports, []sample{
		{"upward", "internal/paging/a.go", `package paging; import "nestdbg/internal/session"`, "paging may not import nestdbg/internal/session"},
		{"sibling", "internal/svm/a.go", `package svm; import "nestdbg/internal/paging"`, "svm may not import"},
		{"downward", "internal/paging/a.go", `package paging; import ("fmt"; "nestdbg/internal/mem")`, ""},
		{"other module", "internal/qemu/a.go", `package qemu; import "example.com/x"`, "may not import example.com/x"},
		{"module for tests", "internal/qemu/a.go", `package qemu; import "github.com/google/go-cmp/cmp"`, "may not import github.com"},
		{"module for tests in a test", "internal/qemu/a_test.go", `package qemu; import "github.com/google/go-cmp/cmp"`, ""},
		{"fake in production", "internal/linux/a.go", `package linux; import "nestdbg/internal/mem/memtest"`, "may not import"},
		{"fake in a test", "internal/linux/a_test.go", `package linux; import "nestdbg/internal/mem/memtest"`, ""},
		{"itself in a test", "internal/linux/a_test.go", `package linux_test; import "nestdbg/internal/linux"`, ""},
		{"above in a test", "internal/mem/a_test.go", `package mem; import "nestdbg/internal/linux"`, "may not import"},
		{"fake of the same", "internal/mem/memtest/a.go", `package memtest; import "nestdbg/internal/mem"`, ""},
		{"fake of too much", "internal/mem/memtest/a.go", `package memtest; import "nestdbg/internal/qemu"`, "may not import"},
		{"no row", "internal/helpers/a.go", `package helpers`, "no row"},
	})
}

// silent are the packages that do no I/O and do not log: bytes or readers in,
// values or errors out.
var silent = strings.Fields("mem arch rsp qmp vmstate dump paging svm vmx kallsyms orc printk btf symfile machine linux nested kernelfile watch report")

// loud are the standard packages that do I/O, each with all below it.
var loud = []string{"os", "net", "syscall", "log", "plugin"}

func checkSilent(f *file) []string {
	var problems []string
	for _, spec := range f.code.Imports {
		name, _ := strconv.Unquote(spec.Path.Value)
		first, _, _ := strings.Cut(name, "/")
		if slices.Contains(loud, first) {
			problems = append(problems, fmt.Sprintf("%s does no I/O, so it does not import %s", f.dir(), name))
		}
	}
	return problems
}

func TestSilent(t *testing.T) {
	each(t, func(f *file) bool { return production(f) && slices.Contains(silent, f.dir()) }, checkSilent)
}

func TestSilentFires(t *testing.T) {
	fires(t, checkSilent, []sample{
		{"file", "internal/orc/a.go", `package orc; import "os"`, "does not import os"},
		{"socket", "internal/qmp/a.go", `package qmp; import "net/netip"`, "does not import net/netip"},
		{"log", "internal/linux/a.go", `package linux; import "log/slog"`, "does not import log/slog"},
		{"reader", "internal/orc/a.go", `package orc; import "io"`, ""},
	})
}

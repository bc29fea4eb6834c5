package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/kernelfile"
	"nestdbg/internal/linux"
	"nestdbg/internal/report"
)

func (a *app) exportCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "export", Short: "Write what a machine says of itself to files, for other tools",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no export of %q; %s --help lists them", args[0], c.CommandPath())
			}
			return c.Help()
		},
	}
	c.AddCommand(a.exportVmlinuxCommand(), a.exportVmcoreCommand())
	return c
}

// export is one "export vmlinux".
type export struct {
	*app
	output, modules string
	force           bool

	kernel   *linux.Kernel
	report   *report.Export
	terminal bool // that sees how far it is
}

func (a *app) exportVmlinuxCommand() *cobra.Command {
	e := &export{app: a}
	c := &cobra.Command{
		Use:   "vmlinux -o FILE",
		Short: "A vmlinux of a machine's kernel, made from its memory: symbols, types, call frames",
		Long: `Writes an ELF file about a machine's kernel, made from what the kernel has in memory:
symbols with sizes, DWARF types and arguments of functions (from BTF), call-frame
information (from ORC), the build id; all at run-time addresses. It is what "nestdbg
gdb" gives to gdb where no vmlinux is at hand. There are no source lines and no
local variables in it, and no contents of memory.

With --modules each loaded module gets a file NAME.ko of its own, whose types lead
to those of the vmlinux.`,
		Example: "  nestdbg export vmlinux -m l1 -o l1.vmlinux\n  nestdbg export vmlinux -m vm0 -o vmlinux --modules modules\n  gdb vmlinux",
		Args:    noArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return e.run(c.Context()) },
	}
	c.Flags().StringVarP(&e.output, "output", "o", "", "the file to write")
	c.Flags().StringVar(&e.modules, "modules", "", "directory for one file per module; made if it is not there")
	c.Flags().BoolVar(&e.force, "force", false, "replace files that exist")
	return c
}

func (e *export) run(ctx context.Context) error {
	if e.output == "" {
		return usagef("export vmlinux needs -o FILE")
	}
	if err := checkFree(e.output, e.force); err != nil {
		return err
	}
	m, k, err := e.kernelAt(ctx)
	if err != nil {
		return err
	}
	e.kernel, e.terminal = k, isTerminal(os.Stderr)
	e.report = &report.Export{Machine: m.Name, File: e.output, Release: k.Release, BuildID: k.BuildID}
	e.report.Size, err = e.write(ctx, e.output, func(w io.Writer) ([]string, error) { return kernelfile.Kernel(k, w) })
	if err != nil {
		return err
	}
	if e.modules != "" {
		if err := e.writeModules(ctx); err != nil {
			return err
		}
	}
	return e.show(e.report)
}

// write makes one file, and notes what is missing in it.
func (e *export) write(ctx context.Context, path string, write func(io.Writer) ([]string, error)) (int64, error) {
	return writeFile(ctx, path, e.force, func(w io.Writer) error {
		if e.terminal {
			p := &progress{w: w, out: e.errOut, name: path}
			defer p.clear()
			w = p
		}
		problems, err := write(w)
		for _, p := range problems {
			e.problem(filepath.Base(path), p)
		}
		return err
	})
}

// moduleName is what can be the name of a module, and of a file: it comes from
// the guest.
var moduleName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// writeModules makes a file for each module. A module that cannot be described is a
// problem; a file that cannot be written is an error.
func (e *export) writeModules(ctx context.Context) error {
	modules, problems, err := e.kernel.Modules()
	for _, p := range problems {
		e.problem("modules", p)
	}
	if err != nil {
		e.problem("modules", err)
	}
	if err := os.MkdirAll(e.modules, 0o777); err != nil {
		return err
	}
	files, seen := kernelfile.NewModules(e.kernel), map[string]bool{}
	for i := range modules {
		m := &modules[i]
		if !moduleName.MatchString(m.Name) || seen[m.Name] {
			e.problem(fmt.Sprintf("module %q at %#x", m.Name, uint64(m.Base)), "no file can have this name")
			continue
		}
		seen[m.Name] = true
		var text bytes.Buffer // files of modules are small
		missing, err := files.Write(m, &text)
		if err != nil {
			e.problem("module "+m.Name, err)
			continue
		}
		path := filepath.Join(e.modules, m.Name+".ko")
		size, err := e.write(ctx, path, func(w io.Writer) ([]string, error) {
			_, err := w.Write(text.Bytes())
			return missing, err
		})
		if err != nil {
			return err
		}
		e.report.Modules = append(e.report.Modules, report.ExportedModule{Name: m.Name, File: path, Size: size})
	}
	return nil
}

func (e *export) problem(of string, what any) {
	e.report.Problems = append(e.report.Problems, fmt.Sprintf("%s: %v", of, what))
}

// progress says on a terminal how much of a file is written.
type progress struct {
	w     io.Writer
	out   io.Writer
	name  string
	size  int
	shown time.Time
}

// progressEvery is the time between two words about progress.
const progressEvery = 100 * time.Millisecond

func (p *progress) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.size += n
	if now := time.Now(); now.Sub(p.shown) >= progressEvery {
		p.shown = now
		fmt.Fprintf(p.out, "\r\x1b[K%s: %.1f MiB", p.name, float64(p.size)/(1<<20))
	}
	return n, err
}

// clear leaves the line as it was before.
func (p *progress) clear() {
	if !p.shown.IsZero() {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

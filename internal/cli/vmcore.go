package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/dump"
	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/internal/report"
)

// vmcoreFormats are the forms of an exported memory.
var vmcoreFormats = []string{"elf", "kdump-zlib", "kdump-zstd", "raw"}

// kdumpMethods are the forms that are compressed.
var kdumpMethods = map[string]dump.Method{"kdump-zlib": dump.Zlib, "kdump-zstd": dump.Zstd}

// vmcoreOptions are the flags of export vmcore.
type vmcoreOptions struct {
	output, format string
	exclude        []string
	force, live    bool
}

func (a *app) exportVmcoreCommand() *cobra.Command {
	var o vmcoreOptions
	c := &cobra.Command{
		Use:   "vmcore -o FILE",
		Short: "A machine's physical memory and registers, as a dump that other tools open",
		Long: `Writes a machine as if it had been one of its own: its physical memory, through the
second stage, with what the VMM has and the second stage lacks; the registers of
every CPU; VMCOREINFO. crash, drgn, gdb and makedumpfile read the form "elf", which is
that of QEMU's dump-guest-memory; pages of zeros take no room in it. They also read
"kdump-zlib" and "kdump-zstd", which are compressed as makedumpfile does it. zstd is
younger: crash 8.0.2 and drgn 0.0.22 with libkdumpfile 0.5.1 read it, makedumpfile only
if it was built so, which Debian's 1.7.2 is not. gdb reads no kdump. "raw" is the
memory alone, each byte at its address.

What runs is stopped meanwhile, unless --live says that pages of different moments
will do. --exclude leaves out what the kernel's own page flags say is "free", memory of
processes ("user") or of files ("cache"), and pages of zeros ("zero"), which are holes
of an ELF file in any case. A kdump says of a page that it was left out; an ELF file has
no word for that, and the machine has less memory there.`,
		Example: "  nestdbg export vmcore -m vm0 -o vm0.elf\n  crash vmlinux vm0.elf\n  drgn -c vm0.elf -s vmlinux\n" +
			"  nestdbg export vmcore -m l1 -o l1.kdump --format kdump-zlib --exclude free,user,cache",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return a.exportVmcore(c.Context(), o)
		},
	}
	c.Flags().StringVarP(&o.output, "output", "o", "", "the file to write")
	c.Flags().StringVar(&o.format, "format", "elf", strings.Join(vmcoreFormats, ", "))
	c.Flags().StringSliceVar(&o.exclude, "exclude", nil, "leave out free,user,cache,zero pages")
	c.Flags().BoolVar(&o.force, "force", false, "replace a file that exists")
	c.Flags().BoolVar(&o.live, "live", false, "let everything run on meanwhile")
	return c
}

// check refuses what does not fit together.
func (o *vmcoreOptions) check() error {
	if o.output == "" {
		return usagef("export vmcore needs -o FILE")
	}
	if !slices.Contains(vmcoreFormats, o.format) {
		return usagef("there is no format %q; there are %v", o.format, vmcoreFormats)
	}
	for _, kind := range o.exclude {
		_, known := exclusions[kind]
		switch {
		case !known && kind != excludeZero:
			return usagef("--exclude knows free, user, cache and zero, not %q", kind)
		case o.live:
			return usagef("--exclude asks the kernel what pages are for, and with --live that changes meanwhile")
		case o.format == "raw":
			return usagef("--exclude: a raw file has no way to say what is not in it")
		}
	}
	return nil
}

func (a *app) exportVmcore(ctx context.Context, o vmcoreOptions) error {
	if err := checkFree(o.output, o.force); err != nil {
		return err
	}
	r := &report.Vmcore{File: o.output, Format: o.format}
	if !o.live {
		resume, ran, err := a.stand(ctx)
		if err != nil {
			return err
		}
		begin := time.Now()
		err = errors.Join(a.fillVmcore(ctx, r, o), resume())
		if ran {
			r.StoppedSeconds = time.Since(begin).Seconds()
		}
		if err != nil {
			return err
		}
		return a.show(r)
	}
	if err := a.fillVmcore(ctx, r, o); err != nil {
		return err
	}
	r.Live = a.session.Running()
	return a.show(r)
}

// fillVmcore writes the file, and what there is to say of it into r.
func (a *app) fillVmcore(ctx context.Context, r *report.Vmcore, o vmcoreOptions) error {
	m, err := a.lookAt(ctx)
	if err != nil {
		return err
	}
	r.Machine = m.Name
	core := &dump.Core{Arch: m.Arch, Ranges: m.Readable(), Memory: m.Phys}
	if r, ok := m.Phys.(interface{ PopulatedRanges() []mem.Range }); ok && m.Parent == nil {
		core.Populated = r.PopulatedRanges()
	}
	for _, c := range m.CPUs {
		core.CPUs = append(core.CPUs, c.Regs)
	}
	x := &exclusion{zero: slices.Contains(o.exclude, excludeZero)}
	k, err := a.session.Kernel(m)
	if err == nil {
		for _, c := range m.CPUs {
			task, _ := k.TaskOn(c.Regs) // 0 if that is not known
			core.Tasks = append(core.Tasks, task.PID)
		}
		r.Problems = append(r.Problems, describeKernel(core, k)...)
		err = x.find(k, core.Ranges, o.exclude)
	} else if len(o.exclude) == 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("what crash and drgn need to know of a kernel: %v", err))
		err = nil
	}
	if err != nil {
		return fmt.Errorf("--exclude: %w", err)
	}
	if x.unknown > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("what %d pages are used for: they are all in the file", x.unknown))
	}
	var p *percent
	if isTerminal(os.Stderr) {
		p = &percent{app: a, name: r.File}
		defer p.clear()
	}
	if method, ok := kdumpMethods[o.format]; ok {
		err = writeKdump(ctx, r, o, core, x, method, p)
	} else {
		core.Ranges = mem.Subtract(core.Ranges, x.left)
		err = writePlain(ctx, r, o, core, p)
	}
	r.Excluded = x.told
	return err
}

// writeKdump writes a compressed file.
func writeKdump(ctx context.Context, r *report.Vmcore, o vmcoreOptions, c *dump.Core, x *exclusion, method dump.Method, p *percent) error {
	opt := dump.KdumpOptions{Method: method, Workers: runtime.GOMAXPROCS(0), Left: x.left, Level: x.level, NoZero: x.zero}
	if p != nil {
		opt.Progress = p.show
	}
	return writeFileAt(ctx, r.File, o.force, func(w io.WriterAt) (int64, error) {
		out, err := c.WriteKdump(w, opt)
		if err != nil {
			return 0, err
		}
		r.Size, r.Stored = out.Size, out.Stored
		r.Problems = append(r.Problems, out.Problems...)
		if x.zero {
			x.told = append(x.told, report.VmcoreExcluded{Kind: excludeZero, Size: out.Zero})
		}
		return out.Size, nil
	})
}

// writePlain writes an ELF or raw file.
func writePlain(ctx context.Context, r *report.Vmcore, o vmcoreOptions, c *dump.Core, p *percent) error {
	write := c.WriteELF
	if o.format == "raw" {
		if n := len(c.Ranges); n > 0 && c.Ranges[n-1].Last > maxRaw {
			return usagef("memory reaches up to %#x: too far for a raw file; use --format elf", c.Ranges[n-1].Last)
		}
		write = c.WriteRaw
	}
	opt := dump.CopyOptions{Workers: runtime.GOMAXPROCS(0)}
	if p != nil {
		opt.Progress = p.show
	}
	err := writeFileAt(ctx, r.File, o.force, func(w io.WriterAt) (int64, error) {
		out, err := write(ctx, w, opt)
		if err != nil {
			return 0, err
		}
		r.Size, r.Stored = out.Size, out.Stored
		r.Problems = append(r.Problems, out.Problems...)
		return out.Size, nil
	})
	if errors.Is(err, dump.ErrTooManyRanges) {
		return usagef("%v; the kdump formats can have them", err)
	}
	return err
}

// exclusions are the kinds of pages that a kernel tells apart.
var exclusions = map[string]struct {
	use   linux.PageUse
	level dump.DumpLevel
}{
	"free":  {linux.PageFree, dump.LevelFree},
	"user":  {linux.PageUser, dump.LevelUser},
	"cache": {linux.PageCache, dump.LevelCache},
}

// excludeZero is the kind that the bytes tell.
const excludeZero = "zero"

// exclusion is what is left out of a file.
type exclusion struct {
	left    []mem.Range
	level   dump.DumpLevel
	zero    bool
	unknown uint64 // pages
	told    []report.VmcoreExcluded
}

// find asks a kernel for the pages of these kinds.
func (x *exclusion) find(k *linux.Kernel, ranges []mem.Range, kinds []string) (err error) {
	wanted := map[linux.PageUse]int{} // to an index of told
	for name, e := range exclusions {
		if slices.Contains(kinds, name) {
			wanted[e.use] = len(x.told)
			x.told = append(x.told, report.VmcoreExcluded{Kind: name})
			x.level |= e.level
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	x.unknown, err = k.PageUses(ranges, func(run mem.Range, use linux.PageUse) {
		if i, ok := wanted[use]; ok {
			x.told[i].Size += run.Size()
			x.left = append(x.left, run)
		}
	})
	slices.SortFunc(x.told, func(a, b report.VmcoreExcluded) int { return cmp.Compare(a.Kind, b.Kind) })
	return err
}

// describeKernel adds what tools need to know of the kernel, and says what is missing.
func describeKernel(core *dump.Core, k *linux.Kernel) (problems []string) {
	core.Release, core.PhysBase = k.Release, uint64(k.PhysBase)
	if i := strings.LastIndex(k.Banner, " #"); i >= 0 { // "Linux version ... #1 SMP ..."
		core.Version = k.Banner[i+1:]
	}
	if core.VMCoreInfo = nil; k.VMCoreInfo != nil {
		core.VMCoreInfo = k.VMCoreInfo.Text()
	} else {
		problems = append(problems, "VMCOREINFO: the kernel keeps none, and crash and drgn need it")
	}
	core.Image = &dump.Image{Virt: k.TextVA, Phys: mem.Range{First: uint64(k.TextPA), Last: uint64(k.TextPA) + k.Size - 1}}
	direct, err := k.DirectMap()
	if err != nil {
		problems = append(problems, fmt.Sprintf("where the kernel has all physical memory, which drgn needs: %v", err))
	}
	core.Direct = direct
	return problems
}

// maxRaw bounds a raw file: memory far up is not worth a file that long.
const maxRaw = 1 << 44

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/dump"
	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/internal/report"
)

// vmcoreFormats are the forms of an exported memory.
var vmcoreFormats = []string{"elf", "raw"}

func (a *app) exportVmcoreCommand() *cobra.Command {
	var output, format string
	var force, live bool
	c := &cobra.Command{
		Use:   "vmcore -o FILE",
		Short: "A machine's physical memory and registers, as a dump that other tools open",
		Long: `Writes a machine as if it had been one of its own: its physical memory, through the
second stage, with what the VMM has and the second stage lacks; the registers of
every CPU; VMCOREINFO. crash, drgn, gdb and makedumpfile read the form "elf", which is
that of QEMU's dump-guest-memory. "raw" is the memory alone, each byte at its address.

What runs is stopped meanwhile, unless --live says that pages of different moments
will do. Pages of zeros take no room.`,
		Example: "  nestdbg export vmcore -m vm0 -o vm0.elf\n  crash vmlinux vm0.elf\n  drgn -c vm0.elf -s vmlinux",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output == "" {
				return usagef("export vmcore needs -o FILE")
			}
			if !slices.Contains(vmcoreFormats, format) {
				return usagef("there is no format %q; there are %v", format, vmcoreFormats)
			}
			return a.exportVmcore(c.Context(), output, format, force, live)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "the file to write")
	c.Flags().StringVar(&format, "format", "elf", "elf or raw")
	c.Flags().BoolVar(&force, "force", false, "replace a file that exists")
	c.Flags().BoolVar(&live, "live", false, "let everything run on meanwhile")
	return c
}

func (a *app) exportVmcore(ctx context.Context, output, format string, force, live bool) error {
	if err := checkFree(output, force); err != nil {
		return err
	}
	r := &report.Vmcore{File: output, Format: format}
	if !live {
		resume, ran, err := a.stand(ctx)
		if err != nil {
			return err
		}
		begin := time.Now()
		err = errors.Join(a.fillVmcore(ctx, r, force), resume())
		if ran {
			r.StoppedSeconds = time.Since(begin).Seconds()
		}
		if err != nil {
			return err
		}
		return a.show(r)
	}
	if err := a.fillVmcore(ctx, r, force); err != nil {
		return err
	}
	r.Live = a.session.Running()
	return a.show(r)
}

// fillVmcore writes the file, and what there is to say of it into r.
func (a *app) fillVmcore(ctx context.Context, r *report.Vmcore, force bool) error {
	m, err := a.lookAt(ctx)
	if err != nil {
		return err
	}
	r.Machine = m.Name
	core := &dump.Core{Arch: m.Arch, Ranges: m.Readable(), Memory: m.Phys}
	for _, c := range m.CPUs {
		core.CPUs = append(core.CPUs, c.Regs)
	}
	if k, err := a.session.Kernel(m); err != nil {
		r.Problems = append(r.Problems, fmt.Sprintf("what crash and drgn need to know of a kernel: %v", err))
	} else {
		r.Problems = append(r.Problems, describeKernel(core, k)...)
	}
	write := core.Write
	if r.Format == "raw" {
		write = func(w io.Writer) ([]string, error) { return writeRaw(w, core) }
	}
	var problems []string
	r.Size, r.Stored, err = writeSparseFile(ctx, r.File, force, func(w io.Writer) (err error) {
		if isTerminal(os.Stderr) {
			p := &progress{w: w, out: a.errOut, name: r.File}
			defer p.clear()
			w = p
		}
		problems, err = write(w)
		return err
	})
	if err != nil {
		return err
	}
	r.Problems = append(r.Problems, problems...)
	return nil
}

// describeKernel adds what tools need to know of the kernel, and says what is missing.
func describeKernel(core *dump.Core, k *linux.Kernel) (problems []string) {
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

// writeRaw writes memory at its addresses, with zeros between.
func writeRaw(w io.Writer, c *dump.Core) (problems []string, err error) {
	buf, at := make([]byte, 1<<20), uint64(0)
	for _, r := range c.Ranges {
		if r.Last > maxRaw {
			return problems, usagef("memory reaches up to %#x: too far for a raw file; use --format elf", r.Last)
		}
		for at <= r.Last {
			b := buf[:min(uint64(len(buf)), r.Last-at+1)]
			if at < r.First {
				b = b[:min(uint64(len(b)), r.First-at)]
				clear(b)
			} else if n, err := c.Memory.ReadPhys(b, mem.Phys(at)); err != nil {
				return problems, fmt.Errorf("physical memory at %#x: %w", at+uint64(n), err)
			}
			if _, err := w.Write(b); err != nil {
				return problems, err
			}
			at += uint64(len(b))
		}
	}
	return problems, nil
}

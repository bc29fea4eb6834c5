package cli

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nestdbg/internal/cexpr"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/report"
)

// printOptions are what print and struct have in common.
type printOptions struct {
	cpu    int
	limits report.ValueLimits
}

func (o *printOptions) flags(c *cobra.Command) {
	cpuFlag(c, &o.cpu)
	c.Flags().IntVar(&o.limits.Depth, "depth", 20, "structures within each other that are shown")
	c.Flags().IntVar(&o.limits.Elements, "elements", 200, "elements of an array and characters of a string that are shown")
}

// printer is what evaluates for a machine's kernel. A machine that runs is stopped for
// it only if an expression needs a CPU: a register, or memory that the kernel's own page
// tables do not have. A CPU that was chosen is asked at once.
func (a *app) printer(ctx context.Context, o *printOptions, format byte) (*report.Printer, error) {
	if o.limits.Depth < 1 || o.limits.Elements < 1 {
		return nil, usagef("--depth and --elements are numbers from 1 on")
	}
	kernel := a.kernelAside
	if o.cpu >= 0 {
		kernel = a.kernelAt
	}
	m, k, err := kernel(ctx)
	if err != nil {
		return nil, err
	}
	in := linux.ExprContext{}
	switch t := a.thread.task; {
	case t != nil && a.thread.machine == m.Name && o.cpu < 0:
		in.Task = t.Addr // the thread that is selected in gdb
	case o.cpu >= 0 || a.stands():
		one, err := a.exprCPU(m, o.cpu)
		if err != nil && o.cpu >= 0 {
			return nil, err
		}
		if err == nil {
			in.Memory = one.Memory
			in.CPU = func() (linux.ExprCPU, error) { return one, nil }
		}
	default:
		in.CPU = func() (linux.ExprCPU, error) {
			m, err := a.lookAt(ctx)
			if err != nil {
				return linux.ExprCPU{}, err
			}
			return a.exprCPU(m, o.cpu)
		}
	}
	return &report.Printer{Machine: m.Name, Env: k.Expressions(in), Format: format, Limits: o.limits,
		Symbol: func(addr uint64) string { return report.PointerSymbol(k, addr) }}, nil
}

// exprCPU is a CPU of the last look for expressions.
func (a *app) exprCPU(m *machine.Machine, index int) (linux.ExprCPU, error) {
	one, err := a.cpu(m, index)
	if err != nil {
		return linux.ExprCPU{}, err
	}
	v, err := a.session.VirtMemory(m, one)
	return linux.ExprCPU{Regs: one.Regs, Memory: v}, err
}

// expressionError makes what is wrong about an expression wrong usage, with the
// place.
func expressionError(text string, err error) error {
	var e *cexpr.Error
	if !errors.As(err, &e) {
		return err
	}
	if e.Pos > 0 && e.Pos < len(text) {
		rest := text[e.Pos:]
		if len(rest) > 24 {
			rest = rest[:24] + "..."
		}
		return usagef("%w (at %q)", err, rest)
	}
	return usageError{err}
}

func (a *app) printCommand() *cobra.Command {
	var o printOptions
	c := &cobra.Command{
		Use: "print [/FORMAT] EXPRESSION", Aliases: []string{"p"},
		Short: "The value of a C expression over a kernel's variables and types: print init_task.comm",
		Long: `The value of a C expression, as gdb's print, with the symbols of a machine's kernel and
its modules, and the types that the kernel carries of itself (BTF). Memory is the
kernel's, or what the chosen CPU sees; a machine that runs is stopped, for a moment,
only for --cpu, a register, current(), and memory that the kernel does not map.
Nothing is assigned and nothing is called.

Besides C:
  per_cpu(runqueues, 1).curr     a CPU's copy of a per-CPU variable, by the kernel's number
  per_cpu_ptr(POINTER, 1)        the same through a __percpu pointer
  current(), current(1)          struct task_struct * of the task that a CPU runs
  task(PID), module("kvm")       struct task_struct * of a task, struct module * of a module
  container_of(PTR, TYPE, MEMBER), offsetof(TYPE, MEMBER), sizeof, typeof
  array[0]@4                     four elements from one on, as in gdb
  $rip, $pc                      registers of the chosen CPU
  $lx_current(), $lx_per_cpu(VAR, CPU), $lx_task_by_pid(PID), $lx_module("NAME")
                                 as in the kernel's scripts for gdb
  'name.part.0'                  a symbol whose name is none of C's
  struct kvm_amd::foo            a module's own type, where the kernel or another module
                                 has one of that name, which a note says

BTF has the types of functions and per-CPU variables, not of other variables. For
those a cast says what they are: (struct rq)name, or *(struct rq *)&name. Of some
variables the type is the same in all kernels and is assumed, which a note says:
` + wrap(strings.Join(linux.WellKnownVariables(), ", "), 86) + `

FORMAT is a letter of gdb's: x d u o t c a s z. An option behind the expression is one
of nestdbg's; "--" ends the options.`,
		Example: "  nestdbg print init_task.comm\n  nestdbg -m l1 print '((struct task_struct *)0xffff888003a4c000)->pid'\n" +
			"  nestdbg print /x 'per_cpu(runqueues, 0).curr->flags'\n" +
			"  nestdbg p 'container_of(init_task.tasks.next, struct task_struct, tasks)->comm'",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			format := byte(0)
			if strings.HasPrefix(args[0], "/") {
				var err error
				if format, err = report.PrintFormat(args[0]); err != nil {
					return usageError{err}
				}
				args = args[1:]
			}
			text := strings.Join(args, " ")
			if text == "" {
				return usagef("print takes an expression")
			}
			p, err := a.printer(c.Context(), &o, format)
			if err != nil {
				return err
			}
			r, err := p.Print(text)
			if err != nil {
				return expressionError(text, err)
			}
			return a.showValue(r, r.Unread())
		},
	}
	o.flags(c)
	return c
}

// showValue shows a value; one of which nothing could be read is no answer.
func (a *app) showValue(r report.Report, unread bool) error {
	if err := a.show(r); err != nil {
		return err
	}
	if unread {
		return exitStatus(exitUsage)
	}
	return nil
}

// wrap breaks a list into lines of at most width bytes.
func wrap(text string, width int) string {
	var out strings.Builder
	line := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == 0:
		case line+1+len(word) > width:
			out.WriteByte('\n')
			line = 0
		default:
			out.WriteByte(' ')
			line++
		}
		out.WriteString(word)
		line += len(word)
	}
	return out.String()
}

// printWord is print with its format as gdb spells it: "p/x".
var printWord = regexp.MustCompile(`^(p|print)(/[a-z]*)?$`)

// Options of print and struct, by whether a value follows.
var (
	printSwitches = strings.Fields("--json -v --verbose -h --help -x --hex")
	printValues   = slices.Concat(strings.Fields("-t --target -m --machine --symbols --cpu --depth --elements"), hintFlags)
)

// splitPrint keeps expressions from being taken for options: what stands behind
// print or struct and is no option of theirs, such as "-1" or "->pid", goes behind "--".
func splitPrint(args []string) (split []string, ok bool) {
	at := 0
	for at < len(args) && strings.HasPrefix(args[at], "-") && args[at] != "--" {
		if slices.Contains(printValues, args[at]) {
			at++
		}
		at++
	}
	if at >= len(args) {
		return nil, false
	}
	word := printWord.FindStringSubmatch(args[at])
	if word == nil && args[at] != "struct" {
		return nil, false
	}
	command, format := args[at], ""
	if word != nil {
		command, format = "print", word[2]
	}
	var options, words []string
	rest := args[at+1:]
	for i := 0; i < len(rest); i++ {
		s := rest[i]
		name, _, _ := strings.Cut(s, "=")
		switch {
		case s == "--":
			words = append(words, rest[i+1:]...)
			i = len(rest)
		case slices.Contains(printValues, s):
			options = append(options, rest[i:min(i+2, len(rest))]...)
			i++
		case slices.Contains(printSwitches, s) || slices.Contains(printValues, name) || isLongOption(s):
			options = append(options, s)
		default:
			words = append(words, s)
		}
	}
	if format != "" {
		words = append([]string{format}, words...)
	}
	return slices.Concat(args[:at], []string{command}, options, []string{"--"}, words), true
}

// isLongOption tells a mistyped option from "--x" of an expression that nobody
// should write: it is C for changing x.
func isLongOption(s string) bool {
	name, ok := strings.CutPrefix(s, "--")
	return ok && len(name) > 1 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") == ""
}

// structAddress reads an address as other commands do, hexadecimal also without 0x,
// or else as an expression.
func structAddress(p *report.Printer, text string) (uint64, []string, error) {
	if looksNumeric(text) && !strings.HasPrefix(text, "0x") {
		if v, err := strconv.ParseUint(text, 16, 64); err == nil {
			return v, nil, nil
		}
	}
	if strings.HasPrefix(text, "pa:") {
		return 0, nil, usagef("struct takes virtual addresses, not %q", text)
	}
	addr, notes, err := p.Env.Address(text)
	return addr, notes, expressionError(text, err)
}

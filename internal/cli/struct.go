package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) structCommand() *cobra.Command {
	var o printOptions
	var hexadecimal bool
	c := &cobra.Command{
		Use:   "struct TYPE[.MEMBER[,MEMBER]...] [ADDRESS]",
		Short: "A type's layout, or what stands at an address as that type: struct task_struct $sp",
		Long: `Without an address the layout of a structure, union, enumeration or typedef of a
machine's kernel or its modules: every member with its offset and size in bytes, bit
fields as byte:bit, and the holes between. (BTF has an array of arrays as one array.)
With an address, the values there. The
address is a number in hexadecimal, or an expression as print takes it: a pointer,
or an object, whose place is meant.

A keyword in front decides between types of one name: struct "union foo". A module in
front means its own type where the kernel or another module has one of that name, which
a note says: struct kvm_amd::foo.`,
		Example: "  nestdbg struct list_head\n  nestdbg struct task_struct.pid,comm init_task\n" +
			"  nestdbg -m l1 struct task_struct 'current(0)'\n  nestdbg struct mm_struct.pgd 'task(1)->mm'",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name, paths, where, err := structArgs(args)
			if err != nil {
				return err
			}
			format := byte(0)
			if hexadecimal {
				format = 'x'
			}
			p, err := a.printer(c.Context(), &o, format)
			if err != nil {
				return err
			}
			if where == "" {
				r, err := p.Layout(name, paths)
				if err != nil {
					return expressionError("", err)
				}
				return a.show(r)
			}
			// Whether there is such a type comes before where it is.
			if _, _, err := p.Env.FindType(name); err != nil {
				return expressionError("", err)
			}
			addr, notes, err := structAddress(p, where)
			if err != nil {
				return err
			}
			r, err := p.Object(name, paths, addr)
			if err != nil {
				return expressionError("", err)
			}
			r.Notes = append(notes, r.Notes...)
			return a.showValue(r, r.Unread())
		},
	}
	o.flags(c)
	c.Flags().BoolVarP(&hexadecimal, "hex", "x", false, "numbers in hexadecimal")
	return c
}

// structArgs reads a type, the members that are meant and an address.
func structArgs(args []string) (name string, paths []string, where string, err error) {
	if strings.Contains(args[0], " ") {
		args = slices.Concat(strings.Fields(args[0]), args[1:])
	}
	if slices.Contains([]string{"struct", "union", "enum"}, args[0]) && len(args) > 1 {
		name, args = args[0]+" ", args[1:]
	}
	tag, members, dotted := strings.Cut(args[0], ".")
	name += tag
	if dotted {
		paths = strings.Split(members, ",")
	}
	if tag == "" || slices.Contains(paths, "") {
		return "", nil, "", usagef("%q is not TYPE or TYPE.MEMBER,MEMBER", args[0])
	}
	return name, paths, strings.Join(args[1:], " "), nil
}

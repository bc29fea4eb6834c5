package linux

import (
	"fmt"
	"strings"

	"nestdbg/internal/kallsyms"
)

// MissingError says what a kernel does not have in memory and which option of its
// build would have put it there. It is an ErrNotFound.
type MissingError struct {
	What   string // "types (BTF)"
	Option string // "CONFIG_DEBUG_INFO_BTF"
	Err    error  // how that shows; may be nil
}

func (e *MissingError) Error() string {
	s := fmt.Sprintf("the kernel has no %s, which %s gives it", e.What, e.Option)
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Is makes it an ErrNotFound.
func (e *MissingError) Is(target error) bool { return target == ErrNotFound }

// Unwrap is how it shows.
func (e *MissingError) Unwrap() error { return e.Err }

// Options that give a kernel what is read here, as Linux names them. VMCOREINFO's was
// CONFIG_CRASH_CORE before 6.9 and CONFIG_KEXEC_CORE's part before 4.13.
const (
	optionTypes       = "CONFIG_DEBUG_INFO_BTF"
	optionModuleTypes = "CONFIG_DEBUG_INFO_BTF_MODULES"
	optionSymbols     = "CONFIG_KALLSYMS"
	optionVariables   = "CONFIG_KALLSYMS_ALL"
	optionInfo        = "CONFIG_VMCORE_INFO (before Linux 6.9 CONFIG_CRASH_CORE)"
	optionUnwind      = "CONFIG_UNWINDER_ORC"
	optionModules     = "CONFIG_MODULES"
	optionLog         = "CONFIG_PRINTK"
)

// missingSymbol is the error for a symbol that the kernel's table does not have. option
// is what gives a kernel that symbol, if the table lists variables at all.
func (k *Kernel) missingSymbol(name, option string) error {
	table, err := k.Symbols()
	switch {
	case err != nil:
		return fmt.Errorf("symbol %s: %w", name, err)
	case table.Damage() != "":
		return fmt.Errorf("symbol %s is not found: %s: %w", name, table.Damage(), kallsyms.ErrCorrupt)
	case !hasVariables(table):
		return &MissingError{What: "symbol " + name + " nor that of any variable", Option: optionVariables}
	case option == "":
		return fmt.Errorf("symbol %s: %w", name, ErrNotFound)
	}
	return &MissingError{What: "symbol " + name, Option: option}
}

// Unread says what could not be read on the way to something that was not found, as the
// end of a message; "" if everything was.
func Unread(problems []Problem) string {
	const most = 3
	var text strings.Builder
	for i, p := range problems[:min(len(problems), most)] {
		text.WriteString([...]string{"; not read: ", ", ", ", "}[i] + p.String())
	}
	if more := len(problems) - most; more > 0 {
		fmt.Fprintf(&text, ", and %d more", more)
	}
	return text.String()
}

// hasVariables reports whether a table lists data. Without CONFIG_KALLSYMS_ALL it is
// functions only; with it there are the two variables that every kernel has.
func hasVariables(table *kallsyms.Table) bool {
	_, task := table.Lookup("init_task")
	_, banner := table.Lookup("linux_banner")
	return task || banner
}

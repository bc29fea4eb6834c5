// Package cexprtest is a made-up program to evaluate expressions about: a few
// types as a kernel has them, variables, and memory with a hole.
package cexprtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"nestdbg/internal/cexpr"
	"nestdbg/internal/mem"
)

// Where things are in the program.
const (
	Task    = 0x1000 // a struct task, the variable init_task
	Other   = 0x1100 // another, which comes next in the list
	Numbers = 0x1300 // int[4]
	Queue   = 0x0800 // the offset of the per-CPU variable queue
	PerCPU  = 0x2000 // what CPU 0 adds; CPU 1 adds 0x1000 more
	Hole    = 0x5000 // where memory ends
)

// Program is the made-up program.
type Program struct {
	Memory []byte            // from address 0 on
	Notes  map[string]string // about types, by keyword and name
	types  map[string]*cexpr.Type
	vars   map[string]cexpr.Variable
}

// The program's types.
var (
	List  = cexpr.NewType(cexpr.Def{})
	TaskT = cexpr.NewType(cexpr.Def{})
	Mode  = cexpr.NewType(cexpr.Def{Kind: cexpr.KindEnum, Name: "mode", Size: 4, Enumerators: []cexpr.Enumerator{
		{Name: "IDLE", Value: 0}, {Name: "BUSY", Value: 1}, {Name: "GONE", Value: 7}}})
	Flags = cexpr.NewType(cexpr.Def{Kind: cexpr.KindEnum, Name: "flags", Size: 4, Enumerators: []cexpr.Enumerator{
		{Name: "F_NONE", Value: 0}, {Name: "F_A", Value: 1}, {Name: "F_B", Value: 2}, {Name: "F_WIDE", Value: 0x30}}})
	Signed = cexpr.NewType(cexpr.Def{Kind: cexpr.KindEnum, Name: "signed_mode", Size: 4, Signed: true,
		Enumerators: []cexpr.Enumerator{{Name: "MINUS", Value: ^uint64(0)}, {Name: "PLUS", Value: 1}}})
	U8     = typedef("u8", basic("unsigned char"))
	U32    = typedef("u32", cexpr.UnsignedInt)
	Worker = cexpr.NewType(cexpr.Def{Kind: cexpr.KindFunc, Elem: cexpr.Int, Params: []cexpr.Param{
		{Name: "t", Type: cexpr.PointerTo(TaskT)}, {Type: cexpr.UnsignedLong}}})
	QueueT = cexpr.NewType(cexpr.Def{Kind: cexpr.KindStruct, Name: "queue", Size: 16, Members: []cexpr.Member{
		{Name: "nr", Type: cexpr.UnsignedInt}, {Name: "curr", Type: cexpr.PointerTo(TaskT), BitOffset: 64}}})
	Hidden = cexpr.NewType(cexpr.Def{Kind: cexpr.KindForward, Name: "struct hidden"})
)

func basic(words string) *cexpr.Type {
	d, ok := cexpr.Basic(words)
	if !ok {
		panic("no basic type " + words)
	}
	return cexpr.NewType(d)
}

func typedef(name string, t *cexpr.Type) *cexpr.Type {
	return cexpr.NewType(cexpr.Def{Kind: cexpr.KindTypedef, Name: name, Elem: t})
}

// Struct is a structure of members, whose offsets are given in bits.
func Struct(name string, size uint64, members ...cexpr.Member) *cexpr.Type {
	return cexpr.NewType(cexpr.Def{Kind: cexpr.KindStruct, Name: name, Size: size, Members: members})
}

// The structures that refer to themselves and to each other:
//
//	struct list { struct list *next, *prev; };
//	struct task {
//		int pid;                        // 0
//		enum mode mode;                 // 4
//		char comm[16];                  // 8
//		struct list tasks;              // 24
//		union { u64 whole; struct { u32 low, high; }; }; // 40
//		unsigned a:3, b:9; int c:4;     // 48
//		_Bool ready;                    // 52
//		const char *name;               // 56
//		int (*work)(struct task *, unsigned long); // 64
//		struct task *parent;            // 72
//		int numbers[4];                 // 80
//		enum flags flags;               // 96
//		u8 bytes[4];                    // 100
//		struct hidden *hidden;          // 104
//		struct list lists[3];           // 112
//		unsigned int tail[];            // 160
//	};
var define = sync.OnceFunc(func() {
	bits := func(bytes uint64) uint64 { return 8 * bytes }
	m := func(name string, t *cexpr.Type, off uint64) cexpr.Member {
		return cexpr.Member{Name: name, Type: t, BitOffset: bits(off)}
	}
	*List = *Struct("list", 16, m("next", cexpr.PointerTo(List), 0), m("prev", cexpr.PointerTo(List), 8))
	halves := Struct("", 8, m("low", U32, 0), m("high", U32, 4))
	pair := cexpr.NewType(cexpr.Def{Kind: cexpr.KindUnion, Size: 8, Members: []cexpr.Member{
		m("whole", basic("unsigned long long"), 0), m("", halves, 0)}})
	constChar := cexpr.NewType(cexpr.Def{Kind: cexpr.KindConst, Elem: cexpr.Char})
	*TaskT = *Struct("task", 160, m("pid", cexpr.Int, 0), m("mode", Mode, 4), m("comm", cexpr.ArrayOf(cexpr.Char, 16), 8),
		m("tasks", List, 24), m("", pair, 40),
		cexpr.Member{Name: "a", Type: cexpr.UnsignedInt, BitOffset: 384, BitSize: 3},
		cexpr.Member{Name: "b", Type: cexpr.UnsignedInt, BitOffset: 387, BitSize: 9},
		cexpr.Member{Name: "c", Type: cexpr.Int, BitOffset: 396, BitSize: 4},
		m("ready", cexpr.Bool, 52), m("name", cexpr.PointerTo(constChar), 56), m("work", cexpr.PointerTo(Worker), 64),
		m("parent", cexpr.PointerTo(TaskT), 72), m("numbers", cexpr.ArrayOf(cexpr.Int, 4), 80), m("flags", Flags, 96),
		m("bytes", cexpr.ArrayOf(U8, 4), 100), m("hidden", cexpr.PointerTo(Hidden), 104),
		m("lists", cexpr.ArrayOf(List, 3), 112), m("tail", cexpr.ArrayOf(cexpr.UnsignedInt, 0), 160))
})

// New makes the program.
func New() *Program {
	define()
	p := &Program{Memory: make([]byte, Hole), types: map[string]*cexpr.Type{
		"struct list": List, "struct task": TaskT, "enum mode": Mode, "enum flags": Flags, "enum signed_mode": Signed,
		"u8": U8, "u32": U32, "struct queue": QueueT, "task_t": typedef("task_t", TaskT), "list_head_t": typedef("list_head_t", List),
	}}
	p.vars = map[string]cexpr.Variable{
		"init_task": {Addr: Task, Type: TaskT, Note: "init_task is assumed to be struct task"},
		"numbers":   {Addr: Numbers, Type: cexpr.ArrayOf(cexpr.Int, 4)},
		"untyped":   {Addr: Task},
		"queue":     {Addr: Queue, Type: QueueT, PerCPU: true},
		"secret":    {Addr: Queue + 0x100, PerCPU: true},
		"work":      {Addr: 0x4000, Type: Worker},
		"edge":      {Addr: Hole - 8, Type: TaskT},
		"work.cold": {Addr: 0x4100},
	}
	p.task(Task, 0, "swapper", Other)
	p.task(Other, 42, "other task", Task)
	for i := range uint64(4) {
		p.Put(Numbers+4*i, 4, -i)
	}
	for cpu := range uint64(2) {
		p.Put(PerCPU+cpu*0x1000+Queue, 4, cpu+10)
		p.Put(PerCPU+cpu*0x1000+Queue+8, 8, []uint64{Task, Other}[cpu])
	}
	copy(p.Memory[0x1400:], "a \"name\"\x00")
	copy(p.Memory[0x1500:], "short\x00er text\x00")
	return p
}

// task fills in a struct task.
func (p *Program) task(at, pid uint64, comm string, next uint64) {
	p.Put(at, 4, pid)
	p.Put(at+4, 4, 1)
	copy(p.Memory[at+8:], comm)
	p.Put(at+24, 8, next+24)
	p.Put(at+32, 8, next+24)
	p.Put(at+40, 8, 0x1122334455667788)
	p.Put(at+48, 4, 5|0x155<<3|0xe<<12)
	p.Put(at+52, 1, 1)
	p.Put(at+56, 8, 0x1400)
	p.Put(at+64, 8, 0x4000)
	p.Put(at+72, 8, Task)
	for i := range uint64(4) {
		p.Put(at+80+4*i, 4, 10*i)
	}
	p.Put(at+96, 4, 0x13)
	p.Put(at+100, 4, 0xff00ff00)
	p.Put(at+104, 8, 0x7777)
}

// Put stores a number of size bytes.
func (p *Program) Put(at, size, v uint64) {
	var w [8]byte
	binary.LittleEndian.PutUint64(w[:], v)
	copy(p.Memory[at:], w[:size])
}

// ReadVirt implements mem.VirtReader.
func (p *Program) ReadVirt(b []byte, a mem.Virt) (int, error) {
	n := 0
	if uint64(a) < uint64(len(p.Memory)) {
		n = copy(b, p.Memory[a:])
	}
	if n < len(b) {
		return n, &mem.FaultError{Space: "program", Addr: uint64(a) + uint64(n)}
	}
	return n, nil
}

// Env is what expressions about the program are evaluated in.
func (p *Program) Env() *cexpr.Env {
	e := &cexpr.Env{Types: p, Symbols: p, Memory: p,
		PerCPU: func(cpu int) (uint64, error) {
			if cpu < 0 || cpu > 1 {
				return 0, &cexpr.Error{Pos: -1, Msg: fmt.Sprintf("there is no CPU %d, there are 2", cpu)}
			}
			return PerCPU + 0x1000*uint64(cpu), nil
		},
		Registers: func(name string) (uint64, error) {
			if name != "pc" {
				return 0, errors.New("no register " + name)
			}
			return 0x4004, nil
		},
	}
	e.Helpers = map[string]cexpr.Helper{"current": {Usage: "current([CPU])", Call: func(args []cexpr.Value) (cexpr.Value, error) {
		return e.Computed(cexpr.PointerTo(TaskT), Other), nil
	}}}
	return e
}

// Named implements cexpr.Types.
func (p *Program) Named(keyword, name string) ([]*cexpr.Type, error) {
	t := p.types[strings.TrimSpace(keyword+" "+name)]
	if t == nil {
		return nil, cexpr.ErrNotFound
	}
	return []*cexpr.Type{t}, nil
}

// Note implements cexpr.Types.
func (p *Program) Note(keyword, name string) string {
	return p.Notes[strings.TrimSpace(keyword+" "+name)]
}

// Enumerator implements cexpr.Types.
func (p *Program) Enumerator(name string) (*cexpr.Type, uint64, error) {
	for _, t := range []*cexpr.Type{Mode, Flags, Signed} {
		d, _ := t.Def()
		for _, e := range d.Enumerators {
			if e.Name == name {
				return t, e.Value, nil
			}
		}
	}
	return nil, 0, cexpr.ErrNotFound
}

// Names implements cexpr.Types.
func (p *Program) Names(keyword string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, name := range slices.Sorted(maps.Keys(p.types)) {
			word, tag, ok := strings.Cut(name, " ")
			if !ok {
				word, tag = "", name
			}
			if word == keyword && !yield(tag) {
				return
			}
		}
	}
}

// Variable implements cexpr.Symbols.
func (p *Program) Variable(name string) (cexpr.Variable, error) {
	v, ok := p.vars[name]
	if !ok {
		return v, cexpr.ErrNotFound
	}
	return v, nil
}

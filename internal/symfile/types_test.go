package symfile

import (
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
)

// someTypes has one type of every kind; the structure refers to itself and to the
// others, so it is enough to look at it.
func someTypes() (list []cilium.Type, task *cilium.Struct) {
	char := &cilium.Int{Name: "char", Size: 1, Encoding: cilium.Signed}
	integer := &cilium.Int{Name: "int", Size: 4, Encoding: cilium.Signed}
	unsigned := &cilium.Int{Name: "unsigned int", Size: 4}
	long := &cilium.Int{Name: "unsigned long", Size: 8}
	boolean := &cilium.Int{Name: "_Bool", Size: 1, Encoding: cilium.Bool}
	u8 := &cilium.Typedef{Name: "u8", Type: &cilium.Int{Name: "unsigned char", Size: 1}}
	state := &cilium.Enum{Name: "state", Size: 4, Signed: true,
		Values: []cilium.EnumValue{{Name: "DEAD", Value: ^uint64(0)}, {Name: "IDLE", Value: 0}}}
	flags := &cilium.Enum{Name: "flags", Size: 8,
		Values: []cilium.EnumValue{{Name: "LOW", Value: 1}, {Name: "HIGH", Value: 1 << 40}}}
	task = &cilium.Struct{Name: "task", Size: 120}
	handler := &cilium.FuncProto{Return: integer, Params: []cilium.FuncParam{
		{Name: "t", Type: &cilium.Pointer{Target: task}},
		{Name: "name", Type: &cilium.Pointer{Target: &cilium.Const{Type: char}}}, {Type: &cilium.Void{}}}}
	task.Members = []cilium.Member{
		{Name: "state", Type: &cilium.Volatile{Type: state}},
		{Name: "flags", Type: flags, Offset: 64},
		{Name: "next", Type: &cilium.Pointer{Target: task}, Offset: 128},
		{Name: "comm", Type: &cilium.Array{Index: integer, Type: char, Nelems: 16}, Offset: 192},
		{Name: "a", Type: unsigned, Offset: 320, BitfieldSize: 3},
		{Name: "b", Type: unsigned, Offset: 323, BitfieldSize: 1},
		{Name: "done", Type: boolean, Offset: 352},
		{Type: &cilium.Union{Size: 8, Members: []cilium.Member{
			{Name: "value", Type: long}, {Name: "data", Type: &cilium.Pointer{Target: &cilium.Void{}}}}}, Offset: 384},
		{Name: "handler", Type: &cilium.Pointer{Target: handler}, Offset: 448},
		{Name: "mm", Type: &cilium.Pointer{Target: &cilium.Fwd{Name: "mm", Kind: cilium.FwdStruct}}, Offset: 512},
		{Name: "load", Type: &cilium.Float{Name: "double", Size: 8}, Offset: 576},
		{Name: "user", Type: &cilium.TypeTag{Type: &cilium.Pointer{Target: &cilium.TypeTag{Type: u8, Value: "user"}},
			Value: "rcu"}, Offset: 640},
		{Name: "exact", Type: &cilium.Restrict{Type: &cilium.Pointer{Target: char}}, Offset: 704},
		{Name: "where", Type: &cilium.Pointer{Target: &cilium.Fwd{Name: "place", Kind: cilium.FwdUnion}}, Offset: 768},
		{Name: "cell", Type: &cilium.Array{Index: integer, Type: long, Nelems: 0}, Offset: 960},
	}
	return []cilium.Type{task, state, flags, handler}, task
}

// taskText is the structure as gdb prints it.
const taskText = `type = struct task {
    volatile enum state state;
    enum flags flags;
    struct task *next;
    char comm[16];
    unsigned int a : 3;
    unsigned int b : 1;
    _Bool done;
    union {
        unsigned long value;
        void *data;
    };
    int (*handler)(struct task *, const char *, ...);
    struct mm *mm;
    double load;
    u8 *user;
    char * restrict exact;
    union place *where;
    unsigned long cell[];
}
`

func TestTypes(t *testing.T) {
	types, task := someTypes()
	raw, ids := marshal(t, types...)
	f := &File{Arch: arch.X86, Sections: testSections, Units: []Unit{{Name: "kernel", BTF: raw,
		Variables: []Variable{{Name: "init_task", Addr: 0xffffffff82000100, Type: btf.ID(ids[task])}}}}}
	checkEntries(t, f,
		"unit kernel",
		// Go's debug/dwarf writes a bit field as "offset : width @ bit offset" with
		// offset 0, and cannot tell a flexible array from an empty one.
		"struct task {state volatile enum state {DEAD=-1; IDLE=0}@0; "+
			"flags enum flags {LOW=1; HIGH=1099511627776}@8; next *struct task@16; "+
			"comm [16]char@24; a unsigned int@0 : 3@320; b unsigned int@0 : 1@323; done _Bool@44;  "+
			"union {value unsigned long@0; data *void@0}@48; "+
			"handler *func(*struct task, *const char, ...) int@56; mm *struct mm@64; load double@72; "+
			"user *u8@80; exact restrict *char@88; where *union place@96; cell [0]unsigned long@120}",
		"enum state {DEAD=-1; IDLE=0}",
		"enum flags {LOW=1; HIGH=1099511627776}",
		"  *struct task t",
		"  *const char name",
		"  ...",
		"union {value unsigned long@0; data *void@0}",
		"struct mm /*incomplete*/",
		"typedef u8 unsigned char",
		"union place /*incomplete*/",
		"struct task init_task at 0300010082ffffffff external true",
	)
	checkGDB(t, f,
		"ptype struct task", taskText,
		"whatis init_task", "type = struct task\n",
		"print &init_task.comm", "$1 = (char (*)[16]) 0xffffffff82000118\n",
		"print &init_task.cell", "$2 = (unsigned long (*)[]) 0xffffffff82000178\n",
		"ptype u8", "type = unsigned char\n",
		"ptype enum state", "type = enum state {DEAD = -1, IDLE}\n",
		"ptype enum flags", "type = enum flags {LOW = 1, HIGH = 1099511627776}\n",
		"print sizeof(struct task)", "$3 = 120\n",
		"print (enum state)-1", "$4 = DEAD\n",
	)
}

// checkGDB compares what gdb answers to commands; commands and answers alternate.
func checkGDB(t *testing.T, f *File, dialogue ...string) {
	t.Helper()
	var commands []string
	var want strings.Builder
	for i := 0; i < len(dialogue); i += 2 {
		commands = append(commands, "echo (gdb) "+dialogue[i]+"\\n", dialogue[i])
		want.WriteString("(gdb) " + dialogue[i] + "\n" + dialogue[i+1])
	}
	if diff := cmp.Diff(want.String(), gdb(t, f, commands...)); diff != "" {
		t.Error(diff)
	}
}

// TestOldBTF has what pahole wrote before Linux 5.0 and before version 1.24: bit
// fields as integers of their own, enumerations without a sign.
func TestOldBTF(t *testing.T) {
	var b rawBTF
	integer := b.add("int", btf.Int, 0, 4, 1<<24|32)
	three := b.add("int", btf.Int, 0, 4, 1<<24|2<<16|3) // 3 bits at bit 2 of its word
	three = b.add("small", btf.Typedef, 0, three)
	b.add("old", btf.Struct, 2, 8, b.name("whole"), integer, 0, b.name("part"), three, 40)
	b.add("sign", btf.Enum, 1, 4, b.name("NEGATIVE"), 0xffffffff)
	f := &File{Arch: arch.X86, Units: []Unit{{BTF: b.bytes()}}}
	checkEntries(t, f, "unit BTF", "typedef small int",
		"struct old {whole int@0; part small@0 : 3@42}", "enum sign {NEGATIVE=-1}")
	checkGDB(t, f,
		"ptype struct old", "type = struct old {\n    int whole;\n    small part : 3;\n}\n",
		"ptype enum sign", "type = enum sign {NEGATIVE = -1}\n",
	)
}

// rawBTF makes BTF by hand, also such as no encoder would write.
type rawBTF struct {
	types, strings buffer
	firstName      uint32
	lastID         uint32
}

func (b *rawBTF) name(s string) uint32 {
	if s == "" {
		return 0
	}
	if b.firstName == 0 && b.strings.len() == 0 {
		b.strings.u8(0)
	}
	at := b.firstName + uint32(b.strings.len())
	b.strings.cstring(s)
	return at
}

// add appends a type and returns its id. With flag in count it has kind_flag.
func (b *rawBTF) add(name string, k btf.Kind, count, ref uint32, data ...uint32) uint32 {
	b.types.u32(b.name(name))
	b.types.u32(uint32(k)<<24 | count)
	b.types.u32(ref)
	for _, v := range data {
		b.types.u32(v)
	}
	b.lastID++
	return b.lastID
}

const flag = 1 << 31

func (b *rawBTF) bytes() []byte {
	var out buffer
	out.u16(0xeb9f)
	out.u16(1)
	for _, v := range []int{24, 0, b.types.len(), b.types.len(), b.strings.len()} {
		out.u32(uint32(v))
	}
	out.bytes(b.types.b...)
	out.bytes(b.strings.b...)
	return out.b
}

// split begins BTF that continues b.
func (b *rawBTF) split() *rawBTF {
	return &rawBTF{firstName: b.firstName + uint32(b.strings.len()), lastID: b.lastID}
}

package debugfile

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// The address of a structure in a structure in an array is what the compiler says, and
// what does not exist is an error.
func TestStructure(t *testing.T) {
	dir := t.TempDir()
	source := write(t, filepath.Join(dir, "a.c"), []byte(`
typedef unsigned long u64;
struct regs { u64 rax, rbx; unsigned char flag; };
typedef struct { char name[4]; const struct regs saved[2]; } vm_t;
extern vm_t vms[3];
vm_t vms[3];
int plain;
const void *const third = &vms[2].saved[1];
void _start(void) { for (;;) ; }
`))
	out := filepath.Join(dir, "a.elf")
	if text, err := exec.Command("gcc", "-g", "-nostdlib", "-static", "-no-pie", "-o", out, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	base := uint64(0x7000_0040_0000)
	i, err := OpenImage(out, &base)
	if err != nil {
		t.Fatal(err)
	}
	at, members, err := i.Structure("vms[2].saved[1]")
	const size, saved, one = 4 + 4 + 2*24, 8, 24
	if want := i.Lookup("vms")[0].Addr + 2*size + saved + one; err != nil || at != want {
		t.Errorf("%#x, %v, want %#x", at, err, want)
	}
	if want := []Member{{"rax", 0, 8}, {"rbx", 8, 8}, {"flag", 16, 1}}; !slices.Equal(members, want) {
		t.Errorf("%+v", members)
	}
	for _, wrong := range []string{"", "nothing", "vms", "vms[3]", "vms[-1]", "vms[0].lost", "vms.saved", "vms[0]saved", "plain", "plain.x", "vms[0].saved[1].rax", "vms[99999999999999999999]"} {
		if at, _, err := i.Structure(wrong); err == nil {
			t.Errorf("%q is at %#x", wrong, at)
		}
	}
}

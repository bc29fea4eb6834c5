package linux

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nestdbg/internal/mem"
)

func (s *fakeSystem) wantVM() VM {
	vm := VM{Addr: mem.Virt(s.vm.va), MM: mem.Virt(s.peek(s.tasks[1].at("mm"))), PID: 100, Comm: "qemu",
		Memslots: []Memslot{
			{ID: 0, Base: 0, Size: 0xa0000, User: 0x7e0000000000},
			{ID: 3, Base: 0x100000, Size: 0x200000, User: 0x7f0000000000},
		}}
	for i := range 2 {
		vm.VCPUs = append(vm.VCPUs, VCPU{Addr: mem.Virt(s.vcpus[i].at("vcpu")), ID: 10 + i, CPU: i, PID: 101 + i, Mode: VCPUMode(i),
			Control: ControlBlock{Kind: "vmcb", Phys: s.control[i].pa, Current: s.control[i].pa}})
	}
	return vm
}

func TestKVMs(t *testing.T) {
	eachGeneration(t, func(t *testing.T, s *fakeSystem) {
		k := s.find()
		got, problems, err := k.KVMs()
		if err != nil || len(problems) != 0 {
			t.Fatalf("%v, %v", problems, err)
		}
		if diff := cmp.Diff([]VM{s.wantVM()}, got, cmpopts.IgnoreFields(VCPU{}, "Regs", "Again")); diff != "" {
			t.Fatal(diff)
		}
		for i, v := range got[0].VCPUs {
			for r, name := range x86.kvmRegs {
				value, ok := v.Regs.Get(name)
				if ok != (r != 16) || (ok && value != uint64(0x1000*(i+1)+r)) {
					t.Errorf("vCPU %d: %s is %#x, %v", i, name, value, ok)
				}
			}
			for r, name := range x86.kvmDebugRegs {
				if value, ok := v.Regs.Get(name); !ok || value != uint64(0x20000*(i+1)+r) {
					t.Errorf("vCPU %d: %s is %#x, %v", i, name, value, ok)
				}
			}
		}
	})
}

func TestKVMsBroken(t *testing.T) {
	tests := []struct {
		name          string
		isNew         bool
		spoil         func(s *fakeSystem)
		vcpus, slots  int
		problems      int
		err           error
		withoutBlocks int // vCPUs without a control block
	}{
		{name: "control block moved", isNew: true, spoil: func(s *fakeSystem) { s.vcpus[0].set("vmcb01.pa", 0x5000) },
			vcpus: 2, slots: 2, problems: 1, withoutBlocks: 1},
		{name: "control block freed", isNew: true, spoil: func(s *fakeSystem) { s.vcpus[1].set("vmcb", 0) },
			vcpus: 2, slots: 2, problems: 1, withoutBlocks: 1},
		{name: "giant count of vCPUs", spoil: func(s *fakeSystem) { s.vm.set("online_vcpus.counter", 0x7fffffff) },
			slots: 2, problems: 1},
		{name: "giant count of slots", spoil: func(s *fakeSystem) { s.setAt("kvm_memslots", s.vm, "memslots[0]", "used_slots", 0x7fffffff) },
			vcpus: 2, problems: 1},
		{name: "slot out of reason", spoil: func(s *fakeSystem) {
			s.poke(s.peek(s.vm.at("memslots[0]"))+uint64(s.types.offset("kvm_memslots", "memslots")), 1<<63)
		}, vcpus: 2, slots: 1, problems: 1},
		{name: "slots loop", isNew: true, spoil: func(s *fakeSystem) {
			first := s.peek(s.peek(s.vm.at("memslots[0]")) + uint64(s.types.offset("kvm_memslots", "id_hash[5]")))
			s.poke(first, first)
		}, vcpus: 2, slots: memslotsMax, problems: 1},
		{name: "xarray loops", isNew: true, spoil: func(s *fakeSystem) {
			s.setAt("xa_node", s.vm, "vcpu_array.xa_head", "slots[0]", s.peek(s.vm.at("vcpu_array.xa_head")))
		}, slots: 2, problems: 1},
		{name: "single vCPU", isNew: true, spoil: func(s *fakeSystem) { s.vm.set("vcpu_array.xa_head", s.vcpus[1].at("vcpu")) },
			vcpus: 1, slots: 2},
		{name: "thread gone", isNew: true, spoil: func(s *fakeSystem) { s.vcpus[0].set("vcpu.pid", 0x10) },
			vcpus: 2, slots: 2, problems: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeSystem(t, tt.isNew)
			k := s.find()
			tt.spoil(s)
			got, problems, err := k.KVMs()
			if !errors.Is(err, tt.err) || len(got) != 1 {
				t.Fatalf("%d VMs, %v", len(got), err)
			}
			without := 0
			for _, v := range got[0].VCPUs {
				if v.Control.Kind == "" {
					without++
				}
			}
			if len(got[0].VCPUs) != tt.vcpus || len(got[0].Memslots) != tt.slots || len(problems) != tt.problems || without != tt.withoutBlocks {
				t.Errorf("%d vCPUs (%d without control block), %d slots, problems %v", len(got[0].VCPUs), without, len(got[0].Memslots), problems)
			}
		})
	}
}

// setAt stores a number in a member of the structure that a pointer leads to; the
// lowest bits of the pointer are marks.
func (s *fakeSystem) setAt(kind string, holder object, pointer, member string, v uint64) {
	o := object{f: s.fake, kind: kind, va: s.peek(holder.at(pointer)) &^ 3}
	o.pa = mem.Phys(s.physOf(o.va))
	o.set(member, v)
}

func TestKVMsEmpty(t *testing.T) {
	s := newFakeSystem(t, true)
	s.link(s.vmListAt)
	k := s.find()
	if got, problems, err := k.KVMs(); len(got) != 0 || len(problems) != 0 || err != nil {
		t.Errorf("%v, %v, %v", got, problems, err)
	}
	s = newFakeSystem(t, true)
	s.modules[0].text("name", "kvmless")
	k = s.find()
	s.link(s.symbols["modules"])
	if _, _, err := k.KVMs(); !errors.Is(err, ErrNotFound) {
		t.Errorf("without KVM: %v", err)
	}
}

// A guest that runs a guest: what KVM says of it, before, at, during and after.
func TestGuestOfGuest(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	own, merged := s.control[1], s.alloc(pageSize, pageSize)
	vms, _, err := k.KVMs()
	if err != nil || len(vms) != 1 {
		t.Fatal(vms, err)
	}
	again := vms[0].VCPUs[1].Again
	for _, c := range []struct {
		what             string
		current          object
		merged           uint64
		inner            uint64
		pending          uint64
		want             ControlBlock
		between, inGuest bool
		err              error
	}{
		{what: "no guest ever", current: own, want: ControlBlock{Current: own.pa}},
		{what: "was in one", current: own, merged: merged.va, inner: 0, want: ControlBlock{Current: own.pa, Merged: merged.pa}},
		{what: "goes there", current: own, merged: merged.va, inner: 0x5000, pending: 1, want: ControlBlock{Current: own.pa, Merged: merged.pa}},
		{what: "has not executed there", current: merged, merged: merged.va, inner: 0x5000, pending: 1, inGuest: true,
			want: ControlBlock{Current: merged.pa, Merged: merged.pa, Inner: 0x5000, Pending: true}},
		{what: "is there", current: merged, merged: merged.va, inner: 0x5000, inGuest: true,
			want: ControlBlock{Current: merged.pa, Merged: merged.pa, Inner: 0x5000}},
		{what: "is leaving", current: merged, merged: merged.va, between: true, want: ControlBlock{Current: merged.pa, Merged: merged.pa}},
		{what: "no page", current: merged, merged: merged.va, inner: 0x5001, between: true, want: ControlBlock{Current: merged.pa, Merged: merged.pa}},
		{what: "wild pointer", current: merged, merged: 0x5001, err: ErrCorrupt},
	} {
		s.vcpus[1].set("vmcb", c.current.va).set("nested.vmcb02.ptr", c.merged).set("nested.vmcb12_gpa", c.inner).
			set("nested.nested_run_pending", c.pending).set("nested.last_vmcb12_gpa", 0x7000).
			set("nested.hsave_msr", 0x8000)
		got, err := again.Read()
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.what, err)
		}
		if c.want.Merged != 0 {
			c.want.LastInner, c.want.HostSave = 0x7000, 0x8000
		}
		if c.want.Kind, c.want.Phys = "vmcb", own.pa; c.err == nil && got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
		if c.err == nil && (got.InGuest() != c.inGuest || got.Between() != c.between) {
			t.Errorf("%s: in guest %v, between %v", c.what, got.InGuest(), got.Between())
		}
	}
}

// TestVMCS reads a vCPU as kvm_intel has it: the pointer to the block in use goes
// through another structure.
func TestVMCS(t *testing.T) {
	f := newFake(t, fakeCore+`
struct loaded_vmcs { long pad; ptr vmcs; }
struct vcpu_vmx { long pad; kvm_vcpu vcpu; loaded_vmcs vmcs01; ptr loaded_vmcs; }
`)
	own, nested := f.alloc(pageSize, pageSize), f.alloc(pageSize, pageSize)
	v, second := f.make("vcpu_vmx"), f.make("loaded_vmcs")
	v.set("vmcs01.vmcs", own.va).set("loaded_vmcs", second.va)
	second.set("vmcs", nested.va)
	k := f.find()
	types, err := k.Types()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newFlavourShape(types, &kvmVMX)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.read(k.space, mem.Virt(v.va))
	if want := (ControlBlock{Kind: "vmcs", Phys: own.pa, Current: nested.pa, Merged: nested.pa, Untold: true}); got != want || err != nil {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	v.set("loaded_vmcs", 0x123)
	if _, err := s.read(k.space, mem.Virt(v.va)); !errors.Is(err, mem.ErrFault) {
		t.Errorf("wild pointer: %v", err)
	}
}

// TestVMCSGuestOfGuest: the guest's current VMCS is there whether it is in its guest or not,
// and KVM has what is in it.
func TestVMCSGuestOfGuest(t *testing.T) {
	f := newFake(t, fakeCore+`
struct loaded_vmcs { long pad; ptr vmcs; }
struct nested_vmx { long current_vmptr; ptr cached_vmcs12; u8 nested_run_pending; loaded_vmcs vmcs02; }
struct vcpu_vmx { long pad; kvm_vcpu vcpu; loaded_vmcs vmcs01; ptr loaded_vmcs; nested_vmx nested; }
`)
	own, merged, kept := f.alloc(pageSize, pageSize), f.alloc(pageSize, pageSize), f.alloc(pageSize, pageSize)
	v := f.make("vcpu_vmx")
	v.set("vmcs01.vmcs", own.va).set("nested.vmcs02.vmcs", merged.va).set("nested.cached_vmcs12", kept.va)
	k := f.find()
	types, err := k.Types()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newFlavourShape(types, &kvmVMX)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what             string
		loaded           string
		current, pending uint64
		want             ControlBlock
		inGuest          bool
	}{
		{"has no VMCS", "vmcs01", 1<<64 - 1, 0, ControlBlock{Current: own.pa}, false},
		{"has one", "vmcs01", 0x7000, 0, ControlBlock{Current: own.pa, LastInner: 0x7000, Kept: kept.pa}, false},
		{"is about to be in it", "nested.vmcs02", 0x7000, 1,
			ControlBlock{Current: merged.pa, Inner: 0x7000, LastInner: 0x7000, Kept: kept.pa, Pending: true}, true},
		{"is in it", "nested.vmcs02", 0x7000, 0, ControlBlock{Current: merged.pa, Inner: 0x7000, LastInner: 0x7000, Kept: kept.pa}, true},
	} {
		v.set("loaded_vmcs", v.at(c.loaded)).set("nested.current_vmptr", c.current).set("nested.nested_run_pending", c.pending)
		got, err := s.read(k.space, mem.Virt(v.va))
		c.want.Kind, c.want.Phys, c.want.Merged = "vmcs", own.pa, merged.pa
		if got != c.want || err != nil || got.InGuest() != c.inGuest || got.Between() {
			t.Errorf("%s: %+v, %v; want %+v", c.what, got, err, c.want)
		}
	}
}

// TestGuessVMCB hides the types of the vendor's module.
func TestGuessVMCB(t *testing.T) {
	s := newFakeSystem(t, true)
	for i := range s.vcpus {
		// The structure begins with the vCPU there, and has the two addresses last.
		v := s.make("lonely_svm")
		copy(s.ram[v.pa:], s.ram[s.vcpus[i].pa+mem.Phys(s.types.offset("vcpu_svm", "vcpu")):][:s.types.size("kvm_vcpu")])
		v.set("vmcb", s.control[i].va).set("pa", uint64(s.control[i].pa))
		s.vcpus[i] = v
		s.vcpus[i].kind = "lonely_svm"
	}
	s.addVCPUList()
	s.types.structs["hidden"] = s.types.structs["vcpu_svm"]
	for i, name := range s.types.order {
		if name == "vcpu_svm" {
			s.types.order[i] = "hidden"
		}
	}
	k := s.find()
	got, problems, err := k.KVMs()
	if err != nil || len(problems) != 0 || len(got) != 1 || len(got[0].VCPUs) != 2 {
		t.Fatalf("%+v, %v, %v", got, problems, err)
	}
	for i, v := range got[0].VCPUs {
		want := ControlBlock{Kind: "vmcb", Phys: s.control[i].pa, Current: s.control[i].pa, Untold: true}
		if v.Control != want {
			t.Errorf("vCPU %d: %+v, want %+v", i, v.Control, want)
		}
	}
	merged := s.alloc(pageSize, pageSize)
	s.poke(s.vcpus[1].at("vmcb")-8, merged.va)
	if got, _, _ = k.KVMs(); got[0].VCPUs[1].Control.Merged != merged.pa || !got[0].VCPUs[1].Control.Between() {
		t.Errorf("in a guest of its own: %+v", got[0].VCPUs[1].Control)
	}
	s.vcpus[0].set("pa", 0)
	if _, problems, _ := k.KVMs(); len(problems) != 1 || !errors.Is(problems[0].Err, ErrNotFound) {
		t.Errorf("nothing like a VMCB: %v", problems)
	}
}

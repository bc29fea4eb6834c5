package nested

import (
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/svm"
)

func (t svmTechnology) describe(parent *machine.Machine, page []byte) (*Description, error) {
	vmcb, err := svm.Parse(page)
	if err != nil {
		return nil, err
	}
	d := &Description{Kind: t.name()}
	d.Exit, _ = svm.ExitName(vmcb.ExitCode())
	for _, x := range vmcb.ExitDetails() {
		d.Why = append(d.Why, x.Name+": "+x.Text)
	}
	for _, f := range vmcb.Fields() {
		d.Fields = append(d.Fields, Field{Area: string(f.Area), Name: f.Name, At: uint64(f.Offset), Value: f.Bytes, Meaning: f.Meaning()})
	}
	for _, c := range vmcb.Checks(parent.PhysBits) {
		d.Checks = append(d.Checks, Check(c))
	}
	d.Fault = svmStageFault(vmcb)
	if vmcb.Encrypted() {
		d.Notes = append(d.Notes, "the guest is encrypted (SEV): its memory and, with SEV-ES, its state are noise")
	}
	return d, nil
}

// svmStageFault is the nested page fault that the guest left with, nil if it was none.
func svmStageFault(vmcb *svm.VMCB) *StageFault {
	f, ok := vmcb.NestedFault()
	if !ok {
		return nil
	}
	out := &StageFault{Addr: mem.Phys(f.Addr), Access: paging.Read, Code: f.Code,
		Present: f.Present, Reserved: f.Reserved, Tables: f.Tables}
	if f.Write {
		out.Access = paging.Write
	}
	if f.Fetch {
		out.Access = paging.Exec
	}
	return out
}

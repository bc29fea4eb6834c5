package report_test

import (
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

// Two guests, of which one reaches a page of the other, its own VMCB, and the image of the
// hypervisor, which somebody said is at these virtual addresses.
func TestAudit(t *testing.T) {
	w := nestedtest.New()
	a, b := w.Guest(), w.Guest()
	running := a.CPU(text, text+0x3f00)
	b.CPU(text+0x30, text+0x3f00)
	w.Save(0, running, text+0x103, text+0x3f00)
	rw := paging.Read | paging.Write
	shared, _, _ := b.NPT.Lookup(uint64(b.TextPhys(text)))
	a.NPT.Map(0x10_0000, shared, 4096, rw)
	a.NPT.Map(0x10_1000, running.Control, 4096, paging.Read)
	a.NPT.Map(0x10_2000, w.TextPhys(text+0x1000), 4096, rw)
	s := session.New(nestedtest.Still{World: w, State: []*arch.Registers{running.Running(0, text+0x20, text+0x3f00)}})
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	golden(t, "audit", report.NewAudit(s, map[string][]mem.Range{"l1": {{First: text, Last: text + 0x17ff}}}, 2))

	alone := session.New(nestedtest.NewStill(w, w.Host(0, text, text)))
	if _, err := alone.Look(t.Context(), session.Glance); err != nil {
		t.Fatal(err)
	}
	golden(t, "audit-alone", report.NewAudit(alone, nil, 0))
}

// What a search came upon, with and without what cannot be in use.
func TestFound(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text, text+0x3f00)
	w.Guest().CPU(text+0x9000, text+0x3f00) // leads nowhere
	w.Save(0, v, text+0x103, text+0x3f00)
	s := session.New(nestedtest.NewStill(w, v.Running(0, text+0x20, text+0x3f00)))
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	found, problems, err := s.Find(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "find", report.NewFound(found, problems, false))
	golden(t, "find-all", report.NewFound(found, problems, true))
}

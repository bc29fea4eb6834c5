package qemu

import (
	"errors"
	"maps"
	"testing"
)

const infoRegisters = "\r\nCPU#0\r\nRAX=0000000000000000 RBX=ffffffff9a21a540\r\n" +
	"RIP=ffffffff99c0ab1b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n" +
	"ES =0000 0000000000000000 ffffffff 00c00000\r\n" +
	"CR0=80050033 CR2=00007f1c7e1f4e10 CR3=0000000102a08000 CR4=00350ef0\r\n" +
	"EFER=0000000000000d01\r\n" +
	"FPR0=0000000000000000 0000 FPR1=0000000000000000 0000\r\n" +
	"XMM00=00000000000000000000000000000000 XMM01=00000000000000000000000000000000\r\n" +
	"\r\nCPU#1\r\nCR3=0000000001234000 CR9=nothing =1\r\n"

func TestParseInfoRegisters(t *testing.T) {
	cpus, err := parseInfoRegisters(infoRegisters)
	if err != nil || len(cpus) != 2 {
		t.Fatalf("%v, %v", cpus, err)
	}
	for name, want := range map[string]uint64{
		"RIP": 0xffffffff99c0ab1b, "CR0": 0x80050033, "CR3": 0x102a08000, "CR4": 0x350ef0, "EFER": 0xd01, "HLT": 1,
	} {
		if got, ok := cpus[0][name]; !ok || got != want {
			t.Errorf("%s is %#x, %v", name, got, ok)
		}
	}
	if _, ok := cpus[0]["XMM00"]; ok {
		t.Error("a register of 128 bits was taken")
	}
	if !maps.Equal(cpus[1], map[string]uint64{"CR3": 0x1234000}) {
		t.Errorf("CPU 1: %v", cpus[1])
	}
	for _, text := range []string{"", "unknown command: 'info registers -a'", "CPU#1\nCR3=1", "CPU#0\nCPU#0\n"} {
		if cpus, err := parseInfoRegisters(text); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v, %v", text, cpus, err)
		}
	}
}

func FuzzInfoRegisters(f *testing.F) {
	f.Add(infoRegisters)
	f.Add("CPU#0\nA=1\nCPU#1\nA=ffffffffffffffffff")
	f.Fuzz(func(t *testing.T, text string) {
		cpus, err := parseInfoRegisters(text)
		if (err == nil) != (len(cpus) > 0) {
			t.Errorf("%d CPUs, %v", len(cpus), err)
		}
	})
}

package arch

import (
	"fmt"
	"strings"
)

// X86 is x86-64. Its gdb registers are those of QEMU's own i386-64bit.xml, in
// that order (QEMU gdb-xml/i386-64bit.xml, 7.2), so that a person sees the same
// names as without us.
//
// Hidden registers, all from QEMU's device state (target/i386/machine.c, 7.2):
//
//	guest_mode      1 while the CPU runs a nested guest (HF_GUEST, hflags bit 21)
//	vm_hsave        MSR VM_HSAVE_PA: where VMRUN put the hypervisor's own state
//	vm_vmcb         physical address of the VMCB of the last VMRUN; stays after the exit
//	nested_cr3      root of the second stage the CPU runs on; known only in guest mode with NPT
//	nested_pg_mode  paging mode of that root: 1 PAE, 2 LMA, 4 NXE, 8 PSE, 0x10 LA57
//	vmcs            physical address of the current VMCS, under KVM as L0; its content is ControlBlock
//	halted          1 while the CPU waits in HLT
//
// The implied efer_mode is EFER as far as the paging mode tells, where a dump has no
// EFER.
var X86 = newX86()

func newX86() *Arch {
	a := Arch{Name: "x86-64", GDBName: "i386:x86-64", MaxInsn: 15, Disassemble: disassembleX86,
		GuestEntry: [][]byte{
			{0x0f, 0x01, 0xd8}, // VMRUN
			{0x0f, 0x01, 0xc2}, // VMLAUNCH
			{0x0f, 0x01, 0xc3}, // VMRESUME
		}}
	add := func(kind Kind, bits int, names string) {
		for _, n := range strings.Fields(names) {
			a.Regs = append(a.Regs, Reg{Name: n, Bits: bits, Kind: kind})
		}
	}
	add(General, 64, "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip")
	add(General, 32, "eflags")
	add(Segment, 32, "cs ss ds es fs gs")
	add(Segment, 64, "fs_base gs_base k_gs_base")
	add(System, 64, "cr0 cr2 cr3 cr4 cr8 efer")
	add(Float, 80, "st0 st1 st2 st3 st4 st5 st6 st7")
	add(Float, 32, "fctrl fstat ftag fiseg fioff foseg fooff fop")
	add(Float, 128, "xmm0 xmm1 xmm2 xmm3 xmm4 xmm5 xmm6 xmm7 xmm8 xmm9 xmm10 xmm11 xmm12 xmm13 xmm14 xmm15")
	add(Float, 32, "mxcsr")
	for i := range a.Regs {
		a.GDB = append(a.GDB, i)
	}
	add(System, 64, "gdtr_base idtr_base ldtr_base tr_base cs_base ss_base ds_base es_base")
	add(System, 32, "gdtr_limit idtr_limit ldtr tr cpl")
	add(System, 64, "dr0 dr1 dr2 dr3 dr6 dr7 star lstar cstar fmask sysenter_cs sysenter_esp sysenter_eip pat")
	add(Hidden, 64, "hflags hflags2 guest_mode vm_hsave vm_vmcb nested_cr3 nested_pg_mode vmcs halted")
	add(Implied, 64, "efer_mode")
	for i, r := range a.Regs {
		switch r.Name {
		case "rip":
			a.PC = i
		case "rsp":
			a.SP = i
		case "eflags":
			a.Flags, a.Interrupts = i, 1<<9 // IF
		}
	}
	a.TargetXML = x86TargetXML(&a)
	return a.finish()
}

// x86TargetXML describes the gdb registers. <osabi>none</osabi> makes gdb use
// qXfer:libraries for the kernel's modules instead of looking for a dynamic
// linker (gdb 13 and 16, solib-target.c).
func x86TargetXML(a *Arch) string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>` +
		`<architecture>i386:x86-64</architecture><osabi>none</osabi>` +
		`<feature name="org.gnu.gdb.i386.core">` + x86Flags)
	types := map[string]string{"rip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr", "eflags": "x64_eflags",
		"cr0": "x64_cr0", "cr3": "x64_cr3", "cr4": "x64_cr4", "efer": "x64_efer", "mxcsr": "x64_mxcsr"}
	inSSE := false
	for _, i := range a.GDB {
		r := a.Regs[i]
		if r.Name == "xmm0" && !inSSE {
			inSSE = true
			b.WriteString(`</feature><feature name="org.gnu.gdb.i386.sse">` + x86Vectors)
		}
		typ, group := types[r.Name], ""
		if typ == "" {
			switch {
			case r.Bits == 80:
				typ = "i387_ext"
			case r.Bits == 128:
				typ = "vec128"
			case r.Bits == 64:
				typ = "int64"
			default:
				typ = "int32"
			}
		}
		switch {
		case r.Kind == System:
			group = ` group="system"`
		case r.Kind == Float && r.Bits == 32 && r.Name != "mxcsr":
			group = ` group="float"`
		case r.Name == "mxcsr":
			group = ` group="vector"`
		}
		fmt.Fprintf(&b, `<reg name=%q bitsize="%d" type=%q%s/>`, r.Name, r.Bits, typ, group)
	}
	b.WriteString(`</feature></target>`)
	return b.String()
}

// x86Flags names the bits that gdb prints for eflags, cr0, cr3, cr4 and efer.
// Intel SDM Vol. 3A, "Control Registers"; AMD APM Vol. 2, "Extended Feature Enable Register".
var x86Flags = flagsXML("x64_eflags", 4, "CF 0 PF 2 AF 4 ZF 6 SF 7 TF 8 IF 9 DF 10 OF 11 NT 14 RF 16 VM 17 AC 18 VIF 19 VIP 20 ID 21") +
	flagsXML("x64_cr0", 8, "PE 0 MP 1 EM 2 TS 3 ET 4 NE 5 WP 16 AM 18 NW 29 CD 30 PG 31") +
	`<flags id="x64_cr3" size="8"><field name="PCID" start="0" end="11"/><field name="PDBR" start="12" end="63"/></flags>` +
	flagsXML("x64_cr4", 8, "VME 0 PVI 1 TSD 2 DE 3 PSE 4 PAE 5 MCE 6 PGE 7 PCE 8 OSFXSR 9 OSXMMEXCPT 10 UMIP 11 LA57 12 VMXE 13 SMXE 14 FSGSBASE 16 PCIDE 17 OSXSAVE 18 SMEP 20 SMAP 21 PKE 22") +
	flagsXML("x64_efer", 8, "SCE 0 LME 8 LMA 10 NXE 11 SVME 12 LMSLE 13 FFXSR 14 TCE 15")

const x86Vectors = `<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>` +
	`<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>` +
	`<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>` +
	`<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>` +
	`<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>` +
	`<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>` +
	`<field name="uint128" type="uint128"/></union>` +
	`<flags id="x64_mxcsr" size="4"><field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/>` +
	`<field name="ZE" start="2" end="2"/><field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/>` +
	`<field name="PE" start="5" end="5"/><field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/>` +
	`<field name="DM" start="8" end="8"/><field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/>` +
	`<field name="UM" start="11" end="11"/><field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/></flags>`

// flagsXML renders a flags type of size bytes from "NAME BIT NAME BIT ...".
func flagsXML(id string, size int, bits string) string {
	f := strings.Fields(bits)
	var b strings.Builder
	fmt.Fprintf(&b, `<flags id=%q size="%d">`, id, size)
	for i := 0; i+1 < len(f); i += 2 {
		fmt.Fprintf(&b, `<field name=%q start=%q end=%q/>`, f[i], f[i+1], f[i+1])
	}
	return b.String() + `</flags>`
}

package vmxtest

// kvmPlaces are the offsets that Linux asserts for struct vmcs12.
var kvmPlaces = table(`
0x028 8 I/O bitmap A; 0x030 8 I/O bitmap B; 0x038 8 MSR bitmaps; 0x040 8 VM-exit MSR-store address;
0x048 8 VM-exit MSR-load address; 0x050 8 VM-entry MSR-load address; 0x058 8 TSC offset;
0x060 8 virtual-APIC address; 0x068 8 APIC-access address; 0x070 8 posted-interrupt descriptor address;
0x078 8 EPT pointer; 0x080 8 EOI-exit bitmap 0; 0x088 8 EOI-exit bitmap 1; 0x090 8 EOI-exit bitmap 2;
0x098 8 EOI-exit bitmap 3; 0x0a0 8 XSS-exiting bitmap; 0x0a8 8 guest-physical address;
0x0b0 8 VMCS link pointer; 0x0b8 8 guest IA32_DEBUGCTL; 0x0c0 8 guest IA32_PAT; 0x0c8 8 guest IA32_EFER;
0x0d0 8 guest IA32_PERF_GLOBAL_CTRL; 0x0d8 8 guest PDPTE0; 0x0e0 8 guest PDPTE1; 0x0e8 8 guest PDPTE2;
0x0f0 8 guest PDPTE3; 0x0f8 8 guest IA32_BNDCFGS; 0x100 8 host IA32_PAT; 0x108 8 host IA32_EFER;
0x110 8 host IA32_PERF_GLOBAL_CTRL; 0x118 8 VMREAD-bitmap address; 0x120 8 VMWRITE-bitmap address;
0x128 8 VM-function controls; 0x130 8 EPTP-list address; 0x138 8 PML address; 0x140 8 ENCLS-exiting bitmap;
0x148 8 TSC multiplier; 0x158 8 CR0 guest/host mask; 0x160 8 CR4 guest/host mask; 0x168 8 CR0 read shadow;
0x170 8 CR4 read shadow; 0x178 8 CR3-target value 0; 0x180 8 CR3-target value 1; 0x188 8 CR3-target value 2;
0x190 8 CR3-target value 3; 0x198 8 exit qualification; 0x1a0 8 guest-linear address; 0x1a8 8 guest CR0;
0x1b0 8 guest CR3; 0x1b8 8 guest CR4; 0x1c0 8 guest ES base; 0x1c8 8 guest CS base; 0x1d0 8 guest SS base;
0x1d8 8 guest DS base; 0x1e0 8 guest FS base; 0x1e8 8 guest GS base; 0x1f0 8 guest LDTR base;
0x1f8 8 guest TR base; 0x200 8 guest GDTR base; 0x208 8 guest IDTR base; 0x210 8 guest DR7; 0x218 8 guest RSP;
0x220 8 guest RIP; 0x228 8 guest RFLAGS; 0x230 8 guest pending debug exceptions;
0x238 8 guest IA32_SYSENTER_ESP; 0x240 8 guest IA32_SYSENTER_EIP; 0x248 8 host CR0; 0x250 8 host CR3;
0x258 8 host CR4; 0x260 8 host FS base; 0x268 8 host GS base; 0x270 8 host TR base; 0x278 8 host GDTR base;
0x280 8 host IDTR base; 0x288 8 host IA32_SYSENTER_ESP; 0x290 8 host IA32_SYSENTER_EIP; 0x298 8 host RSP;
0x2a0 8 host RIP; 0x2e8 4 pin-based controls; 0x2ec 4 primary controls; 0x2f0 4 exception bitmap;
0x2f4 4 page-fault error-code mask; 0x2f8 4 page-fault error-code match; 0x2fc 4 CR3-target count;
0x300 4 VM-exit controls; 0x304 4 VM-exit MSR-store count; 0x308 4 VM-exit MSR-load count;
0x30c 4 VM-entry controls; 0x310 4 VM-entry MSR-load count; 0x314 4 VM-entry interruption information;
0x318 4 VM-entry exception error code; 0x31c 4 VM-entry instruction length; 0x320 4 TPR threshold;
0x324 4 secondary controls; 0x328 4 VM-instruction error; 0x32c 4 exit reason;
0x330 4 VM-exit interruption information; 0x334 4 VM-exit interruption error code;
0x338 4 IDT-vectoring information; 0x33c 4 IDT-vectoring error code; 0x340 4 VM-exit instruction length;
0x344 4 VM-exit instruction information; 0x348 4 guest ES limit; 0x34c 4 guest CS limit;
0x350 4 guest SS limit; 0x354 4 guest DS limit; 0x358 4 guest FS limit; 0x35c 4 guest GS limit;
0x360 4 guest LDTR limit; 0x364 4 guest TR limit; 0x368 4 guest GDTR limit; 0x36c 4 guest IDTR limit;
0x370 4 guest ES access rights; 0x374 4 guest CS access rights; 0x378 4 guest SS access rights;
0x37c 4 guest DS access rights; 0x380 4 guest FS access rights; 0x384 4 guest GS access rights;
0x388 4 guest LDTR access rights; 0x38c 4 guest TR access rights; 0x390 4 guest interruptibility state;
0x394 4 guest activity state; 0x398 4 guest IA32_SYSENTER_CS; 0x39c 4 host IA32_SYSENTER_CS;
0x3a0 4 VMX-preemption timer; 0x3c0 2 VPID; 0x3c2 2 posted-interrupt notification vector; 0x3c4 2 guest ES;
0x3c6 2 guest CS; 0x3c8 2 guest SS; 0x3ca 2 guest DS; 0x3cc 2 guest FS; 0x3ce 2 guest GS; 0x3d0 2 guest LDTR;
0x3d2 2 guest TR; 0x3d4 2 guest interrupt status; 0x3d6 2 host ES; 0x3d8 2 host CS; 0x3da 2 host SS;
0x3dc 2 host DS; 0x3de 2 host FS; 0x3e0 2 host GS; 0x3e2 2 host TR; 0x3e4 2 PML index`)

// hypervPlaces are the members of struct hv_enlightened_vmcs, their sizes added up.
var hypervPlaces = table(`
0x008 2 host ES; 0x00a 2 host CS; 0x00c 2 host SS; 0x00e 2 host DS; 0x010 2 host FS; 0x012 2 host GS;
0x014 2 host TR; 0x018 8 host IA32_PAT; 0x020 8 host IA32_EFER; 0x028 8 host CR0; 0x030 8 host CR3;
0x038 8 host CR4; 0x040 8 host IA32_SYSENTER_ESP; 0x048 8 host IA32_SYSENTER_EIP; 0x050 8 host RIP;
0x058 4 host IA32_SYSENTER_CS; 0x05c 4 pin-based controls; 0x060 4 VM-exit controls;
0x064 4 secondary controls; 0x068 8 I/O bitmap A; 0x070 8 I/O bitmap B; 0x078 8 MSR bitmaps; 0x080 2 guest ES;
0x082 2 guest CS; 0x084 2 guest SS; 0x086 2 guest DS; 0x088 2 guest FS; 0x08a 2 guest GS; 0x08c 2 guest LDTR;
0x08e 2 guest TR; 0x090 4 guest ES limit; 0x094 4 guest CS limit; 0x098 4 guest SS limit;
0x09c 4 guest DS limit; 0x0a0 4 guest FS limit; 0x0a4 4 guest GS limit; 0x0a8 4 guest LDTR limit;
0x0ac 4 guest TR limit; 0x0b0 4 guest GDTR limit; 0x0b4 4 guest IDTR limit; 0x0b8 4 guest ES access rights;
0x0bc 4 guest CS access rights; 0x0c0 4 guest SS access rights; 0x0c4 4 guest DS access rights;
0x0c8 4 guest FS access rights; 0x0cc 4 guest GS access rights; 0x0d0 4 guest LDTR access rights;
0x0d4 4 guest TR access rights; 0x0d8 8 guest ES base; 0x0e0 8 guest CS base; 0x0e8 8 guest SS base;
0x0f0 8 guest DS base; 0x0f8 8 guest FS base; 0x100 8 guest GS base; 0x108 8 guest LDTR base;
0x110 8 guest TR base; 0x118 8 guest GDTR base; 0x120 8 guest IDTR base; 0x140 8 VM-exit MSR-store address;
0x148 8 VM-exit MSR-load address; 0x150 8 VM-entry MSR-load address; 0x158 8 CR3-target value 0;
0x160 8 CR3-target value 1; 0x168 8 CR3-target value 2; 0x170 8 CR3-target value 3;
0x178 4 page-fault error-code mask; 0x17c 4 page-fault error-code match; 0x180 4 CR3-target count;
0x184 4 VM-exit MSR-store count; 0x188 4 VM-exit MSR-load count; 0x18c 4 VM-entry MSR-load count;
0x190 8 TSC offset; 0x198 8 virtual-APIC address; 0x1a0 8 VMCS link pointer; 0x1a8 8 guest IA32_DEBUGCTL;
0x1b0 8 guest IA32_PAT; 0x1b8 8 guest IA32_EFER; 0x1c0 8 guest PDPTE0; 0x1c8 8 guest PDPTE1;
0x1d0 8 guest PDPTE2; 0x1d8 8 guest PDPTE3; 0x1e0 8 guest pending debug exceptions;
0x1e8 8 guest IA32_SYSENTER_ESP; 0x1f0 8 guest IA32_SYSENTER_EIP; 0x1f8 4 guest activity state;
0x1fc 4 guest IA32_SYSENTER_CS; 0x200 8 CR0 guest/host mask; 0x208 8 CR4 guest/host mask;
0x210 8 CR0 read shadow; 0x218 8 CR4 read shadow; 0x220 8 guest CR0; 0x228 8 guest CR3; 0x230 8 guest CR4;
0x238 8 guest DR7; 0x240 8 host FS base; 0x248 8 host GS base; 0x250 8 host TR base; 0x258 8 host GDTR base;
0x260 8 host IDTR base; 0x268 8 host RSP; 0x270 8 EPT pointer; 0x278 2 VPID; 0x2a8 8 guest-physical address;
0x2b0 4 VM-instruction error; 0x2b4 4 exit reason; 0x2b8 4 VM-exit interruption information;
0x2bc 4 VM-exit interruption error code; 0x2c0 4 IDT-vectoring information; 0x2c4 4 IDT-vectoring error code;
0x2c8 4 VM-exit instruction length; 0x2cc 4 VM-exit instruction information; 0x2d0 8 exit qualification;
0x2d8 8 I/O RCX; 0x2e0 8 I/O RSI; 0x2e8 8 I/O RDI; 0x2f0 8 I/O RIP; 0x2f8 8 guest-linear address;
0x300 8 guest RSP; 0x308 8 guest RFLAGS; 0x310 4 guest interruptibility state; 0x314 4 primary controls;
0x318 4 exception bitmap; 0x31c 4 VM-entry controls; 0x320 4 VM-entry interruption information;
0x324 4 VM-entry exception error code; 0x328 4 VM-entry instruction length; 0x32c 4 TPR threshold;
0x330 8 guest RIP; 0x380 8 guest IA32_BNDCFGS; 0x388 8 guest IA32_PERF_GLOBAL_CTRL; 0x390 8 guest IA32_S_CET;
0x398 8 guest SSP; 0x3a0 8 guest IA32_INTERRUPT_SSP_TABLE_ADDR; 0x3a8 8 guest IA32_LBR_CTL;
0x3c0 8 XSS-exiting bitmap; 0x3c8 8 ENCLS-exiting bitmap; 0x3d0 8 host IA32_PERF_GLOBAL_CTRL;
0x3d8 8 TSC multiplier; 0x3e0 8 host IA32_S_CET; 0x3e8 8 host SSP; 0x3f0 8 host IA32_INTERRUPT_SSP_TABLE_ADDR`)

// bochsPlaces were read off a VMCS of Bochs 2.7 whose guest was known; those of the
// controls follow from where their groups begin.
var bochsPlaces = table(`
0x010 2 VPID; 0x478 8 EPT pointer; 0x610 8 VMCS link pointer; 0x620 8 guest IA32_PAT; 0x628 8 guest IA32_EFER;
0x710 8 host IA32_PAT; 0x718 8 host IA32_EFER; 0x910 4 VM-instruction error; 0x918 4 exit reason;
0xe10 8 guest CR0; 0xe18 8 guest CR3; 0xe20 8 guest CR4; 0xe80 8 guest RSP; 0xe88 8 guest RIP;
0xe90 8 guest RFLAGS; 0xf10 8 host CR0; 0xf18 8 host CR3; 0xf20 8 host CR4; 0xf30 8 host GS base;
0xf60 8 host RSP; 0xf68 8 host RIP; 0x810 4 pin-based controls; 0x818 4 primary controls;
0x840 4 VM-exit controls; 0x858 4 VM-entry controls; 0x868 4 VM-entry interruption information;
0x888 4 secondary controls; 0x420 8 MSR bitmaps; 0x318 2 host CS`)

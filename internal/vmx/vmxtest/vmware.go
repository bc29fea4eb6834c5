package vmxtest

// vmwarePlaces are as far as the tool Actaeon has them (Graziano and others, "Hypervisor
// Memory Forensics", 2013).
var vmwarePlaces = table(`
0x2e8 8 VMCS link pointer; 0x8a8 8 guest CR0; 0x8b0 8 guest CR3; 0x8b8 8 guest CR4; 0x918 8 guest RSP;
0x920 8 guest RIP; 0x928 8 guest RFLAGS; 0xa18 8 host CR0; 0xa20 8 host CR3; 0xa28 8 host CR4; 0xa68 8 host RSP;
0xa70 8 host RIP`)

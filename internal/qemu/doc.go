// Package qemu is the live backend: it finds a running QEMU, maps the memory of
// its machine, asks it for the state of its devices, and drives its gdbstub.
//
// QEMU is unmodified and usually not started for us. Everything is found from its
// process: the command line, its sockets, its mappings. What is missing is named
// together with the QEMU option that provides it. Reads go through the memory
// that QEMU itself uses, writes go through QEMU, so that it can drop code that it
// has translated.
//
// A QMP socket and a gdbstub serve one client at a time. The QMP socket is held
// only while asking; the stub from OpenStub to Stub.Close.
package qemu

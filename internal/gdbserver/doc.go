// Package gdbserver serves several machines to one unmodified gdb: the GDB
// remote protocol's packets and states, free of any transport. Each machine is a
// process to gdb (pid 1 is L1, 2 and up are nested), each vCPU a thread.
//
// An Engine is one client's session. Its owner feeds it bytes, calls Step until
// it has nothing more to do, and sends what Step returns; Serve does that for a
// connection. What the engine serves is a Target, a struct of small interfaces;
// one that is nil is a capability gdb is never told of.
//
// # Which machines the client hears of
//
// A client that sent "!" (target extended-remote) is told at "?" that nothing
// runs, and attaches the machines it wants; no reply names a machine before. A
// client that did not (target remote, lldb) gets Options.Process, attached when
// it is first needed.
//
// # Who holds a stop
//
// gdb 13 and 16 abort or hang when a stop names a thread that the last vCont did
// not resume, and leak state when a process exits in the answer to a step of one
// thread alone. But a nested machine runs only while those below it run, so such
// stops happen. The engine holds them, the Resumer only reports:
//
//   - Resume returns whatever happened, covered by the actions or not.
//   - The engine keeps a stop that the client cannot be told, and calls Resume
//     again with the client's actions behind one {Hold} action for each thread
//     that has a stop kept. A thread so named stays frozen at its event; everything
//     else runs on as far as the resumed threads need it.
//   - The stop is delivered, without running anything, by the first vCont that
//     covers its thread.
//   - When the client interrupts meanwhile, the answer names a resumed thread.
//   - A process that exits during a lone step completes the step first, with its
//     last registers, and its exit is delivered by the next vCont that covers it.
//
// Sources: GDB manual, appendix "GDB Remote Serial Protocol"; behaviour of gdb
// 13.1, gdb 16.3 and lldb 14 as tried out, where the comments say so.
package gdbserver

# Runs inside gdb, which has the vendor's files and is connected to nestdbg's
# server, and stops L2 again and again. For each stop it prints one line of JSON:
# the frames that gdb finds and those that nestdbg does. See TestUnwindStops.
#
# gdb's frames are those of the vendor's call-frame information. There are places
# that it does not describe, because they are assembly. What is right there is
# written down here, from the kernel's source, as gdb unwinders; the ORC tables,
# by which nestdbg unwinds, are not asked.
import gdb
import gdb.unwinder
import json
import os
import random
import socket
import struct
import threading

MASK = 2**64 - 1
KERNEL = 2**63
FRAMES_MAX = 300


def read(addr, size):
    return bytes(gdb.selected_inferior().read_memory(addr, size))


def read64(addr):
    return struct.unpack("<Q", read(addr, 8))[0]


def symbol(name):
    try:
        return int(gdb.parse_and_eval("(unsigned long)&'%s'" % name)) & MASK
    except gdb.error:
        return None


def function_at(pc):
    """The function of an address and the offset in it, by the ELF symbols: assembly has
    no others."""
    text = gdb.execute("info symbol %#x" % pc, to_string=True)
    if " in section " not in text:  # NAME [+ OFFSET] in section ...
        return "", 0
    place = text.split(" in section ")[0].split(" + ")
    return place[0], int(place[1]) if len(place) > 1 else 0


# struct pt_regs (Linux 6.1 arch/x86/include/asm/ptrace.h), 8 bytes each.
PT_REGS = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
           "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"]
# What a function keeps for its caller, and so what gdb may know of a caller.
KEPT = ["rbx", "rbp", "r12", "r13", "r14", "r15"]


class FrameID:
    def __init__(self, sp, pc):
        self.sp, self.pc = sp, pc


class Gaps(gdb.unwinder.Unwinder):
    """The places that the vendor's call-frame information leaves out."""

    def __init__(self):
        super().__init__("gaps")
        self.first, self.last = symbol("__entry_text_start"), symbol("__entry_text_end")
        self.to_user = symbol("syscall_exit_to_user_mode")
        # Where a new task begins: assembly, which calls a function of the other name since
        # Linux 6.6.
        self.fork = "ret_from_fork_asm" if symbol("ret_from_fork_asm") else "ret_from_fork"
        self.starts = {}  # of the functions that hardware enters, by address
        self.forget()

    def forget(self):
        # Frames whose pc is the very instruction to go on with. gdb takes the pc of
        # every frame but the first as a return address and looks up what is in front
        # of it, so it is told pc+1.
        self.exact = set()
        self.again = set()  # frames that are shown twice
        self.regs = set()  # frames whose caller's registers are in a struct pt_regs

    def is_entry(self, pc):
        return self.first <= pc < self.last

    def place(self, frame):
        """A frame's real pc and sp."""
        pc, sp = (int(frame.read_register(r)) & MASK for r in ("rip", "rsp"))
        return (pc - 1 if (pc, sp) in self.exact else pc), sp

    def kept(self, pending):
        """A frame's registers, without those that are not known, as of a parked CPU."""
        out = {}
        for r in KEPT:
            try:
                out[r] = int(pending.read_register(r)) & MASK
            except gdb.error:
                pass
        return out

    def caller(self, pending, pc, sp, regs, exact):
        """The unwind information that says what the caller's registers are."""
        info = pending.create_unwind_info(FrameID(pending.read_register("rsp"), pending.read_register("rip")))
        if exact:
            pc += 1
            self.exact.add((pc, sp))
        for name, value in dict(regs, rip=pc, rsp=sp).items():
            info.add_saved_register(name, gdb.Value(value).cast(pending.read_register(name).type))
        return info

    def saved(self, pending, pc, at):
        self.regs.add((pc, at))
        regs = dict(zip(PT_REGS, struct.unpack("<21Q", read(at, 8 * 21))))
        return self.caller(pending, regs["rip"], regs["rsp"], {r: regs[r] for r in KEPT}, True)

    def interrupted(self, pending, at):
        """From what the hardware pushed: ip, cs, flags, sp, ss."""
        ip, _, _, sp = struct.unpack("<4Q", read(at, 32))
        return self.caller(pending, ip, sp, self.kept(pending), True)

    def on_other_stack(self, pc):
        """Whether code is between "mov %reg,%rsp" and "pop %rsp": calls on the stack for
        interrupts, at whose top the own stack pointer is (Linux 6.1
        arch/x86/include/asm/irq_stack.h:call_on_stack). Inline assembly, which the
        compiler does not look into."""
        code = read(pc, 48)
        at = 0
        while at < 40:
            if code[at] == 0x5c:
                return True
            if code[at] == 0xe8:  # call
                at += 5
            elif code[at] & 0xf8 == 0x48 and code[at + 1] == 0x89 and code[at + 2] >= 0xc0:  # mov %reg,%reg
                at += 3
            elif code[at] == 0x89 and code[at + 1] >= 0xc0:
                at += 2
            else:
                return False
        return False

    def same(self, pending, pc, sp, exact):
        """The same frame once more, with another stack pointer."""
        self.again.add((pc + 1 if exact else pc, sp))
        return self.caller(pending, pc, sp, self.kept(pending), exact)

    def __call__(self, pending):
        try:
            return self.unwind(pending)
        except gdb.MemoryError:
            return None

    def unwind(self, pending):
        pc, sp = self.place(pending)
        if pc < KERNEL:
            return None
        if self.starts.get(pc) == SYSCALL:
            ip = int(pending.read_register("rcx")) & MASK
            return self.caller(pending, ip, sp, self.kept(pending), True)
        if pc in self.starts:
            return self.interrupted(pending, sp + self.starts[pc])
        if self.is_entry(pc):
            # Entry code calls C with nothing on the stack but a struct pt_regs (Linux 6.1
            # arch/x86/entry/entry_64.S:idtentry_body, entry_SYSCALL_64). error_entry makes one
            # and is called itself: a return address is in front of it, where gdb finds it.
            name = function_at(pc)[0]
            if name.startswith("asm_call_") and name.endswith("on_stack"):
                # push %rbp; mov %rsp,%rbp, and then another stack (Linux 5.10
                # arch/x86/entry/entry_64.S:asm_call_on_stack).
                rbp = int(pending.read_register("rbp")) & MASK
                return self.caller(pending, read64(rbp + 8), rbp + 16, dict(self.kept(pending), rbp=read64(rbp)), False)
            if name == "error_entry" and read(pc - 10, 2) == b"\x41\x5c":
                return self.saved(pending, pc, sp)  # in 5.10 it pops its return address before it calls sync_regs
            if read(pc - 5, 1) != b"\xe8" or name == "error_entry":
                return None
            return self.saved(pending, pc, sp)
        if read(pc - 5, 1) == b"\xe8" and pc + struct.unpack("<i", read(pc - 4, 4))[0] & MASK == self.to_user and \
                function_at(pc)[0] == self.fork == "ret_from_fork":
            return self.saved(pending, pc, sp)  # a new task, on its way to user mode
        if read(pc - 6, 6) == b"\xe8\x01\x00\x00\x00\xcc":
            # A thunk of an indirect call: behind a call that leaves an address for "mov
            # %reg,(%rsp)" to replace (arch/x86/lib/retpoline.S:RETPOLINE). It is jumped to.
            return self.caller(pending, read64(sp + 8), sp + 16, self.kept(pending), False)
        if sp & 0xfff == 0xff8 and self.on_other_stack(pc):
            return self.same(pending, pc, read64(sp), False)
        code = read(pc - 1, 2)
        if code[0] == 0x9c and 0x58 <= code[1] <= 0x5f:
            # pushf; pop %reg: in inline assembly, which the compiler does not look into
            # (arch/x86/include/asm/irqflags.h:native_save_fl).
            return self.same(pending, pc, sp + 8, True)
        return None


# What hardware enters, with the bytes in front of what it pushed (ip, cs, flags, sp, ss).
SYSCALL = -1  # it pushes nothing: the caller's ip is in rcx
STARTS = {"asm_sysvec_apic_timer_interrupt": 0, "asm_exc_page_fault": 8, "asm_common_interrupt": 8,
          "entry_SYSCALL_64": SYSCALL}

# Where stacks begin. Assembly too, so gdb would go on.
BOTTOMS = ("secondary_startup_64", "secondary_startup_64_no_verify", "common_startup_64")

# Functions that are called often, to begin with, of Linux 5.10 to 7.2. What stops show is
# added.
FIRST = {
    "kernel": ["ksys_write", "kernel_clone", "do_exit", "handle_mm_fault", "schedule", "vfs_read", "do_filp_open",
               "mmput", "clear_page_erms", "memcpy_erms", "copy_user_enhanced_fast_string", "rep_movs_alternative"],
    "interrupt": ["hrtimer_interrupt", "scheduler_tick", "sched_tick", "tick_sched_timer", "tick_nohz_handler",
                  "handle_softirqs", "__do_softirq", "rcu_core", "run_timer_softirq", "irqentry_enter",
                  "__common_interrupt", "handle_edge_irq"],
    "exception": ["do_user_addr_fault", "exc_page_fault", "filemap_map_pages", "do_anonymous_page", "sync_regs",
                  "do_wp_page"],
    "module": ["loop_queue_rq", "lo_complete_rq", "dummy_xmit", "loop_process_work", "loop_queue_work", "lo_rw_aio",
               "virtqueue_add_outbuf", "vring_interrupt", "vm_interrupt", "put_chars", "vm_notify"],
    "entry": list(STARTS),
}
# Where a kernel is that ends. QEMU loses one now and then (see casualty_test.go), and its
# stacks say nothing of ours.
ENDS = ("panic", "exc_double_fault", "oops_end")

# How many stops of 100 are to be of each class.
SHARES = {"kernel": 30, "interrupt": 24, "exception": 19, "module": 19, "entry": 8}


def gdb_frames(gaps):
    """The (pc, sp) of every frame, as gdb unwinds."""
    out, f = [], gdb.newest_frame()
    while f is not None and len(out) < FRAMES_MAX:
        # Neither inlined functions nor calls that were jumps have a frame of their own.
        if f.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            shown = int(f.read_register("rip")) & MASK, int(f.read_register("rsp")) & MASK
            pc, sp = gaps.place(f)
            if shown not in gaps.again:
                out.append((pc, sp))
            if pc < KERNEL:
                break
        try:
            older = f.older()
        except gdb.error as e:
            return out, str(e)
        if out and out[-1] not in gaps.regs and function_at(f.pc() - 1)[0] in (gaps.fork,) + BOTTOMS:
            break
        f = older
    return out, ""


def connection_to(address):
    """gdb's own connection to the server at a unix socket: what is sent there is sent by
    gdb. gdb's Ctrl-C would end the connection if it came while gdb waits for an answer."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + fd).startswith("socket:"):
                s = socket.socket(fileno=os.dup(int(fd)))
                if s.family == socket.AF_UNIX and s.getpeername() == address:
                    return s
        except OSError:
            pass
    raise gdb.GdbError("no connection to " + address)


class Stops:
    def __init__(self, seed, address, modules):
        self.connection = connection_to(address)
        self.random = random.Random(seed)
        self.modules = modules  # their (first, last) addresses
        self.gaps = Gaps()
        gdb.unwinder.register_unwinder(None, self.gaps, replace=True)
        self.places = {c: sorted(filter(None, map(symbol, names))) for c, names in FIRST.items()}
        for name, skip in STARTS.items():
            if symbol(name):
                self.gaps.starts[symbol(name)] = skip
        self.count = {c: 0 for c in SHARES}
        self.ends = [a for a in map(symbol, ENDS) if a]

    def module_at(self, pc):
        return any(first <= pc <= last for first, last in self.modules)

    def contexts(self, frames):
        """What each frame is part of: kernel, interrupt, exception, module or entry."""
        out, below = [], "kernel"
        for pc, _ in reversed(frames):
            if self.gaps.is_entry(pc):
                name = function_at(pc - 1)[0]
                below = "exception" if name.startswith("asm_exc_") else "kernel" if "SYSCALL" in name else "interrupt"
                out.append("entry")
            else:
                out.append("module" if self.module_at(pc) else below)
        return out[::-1]

    def learn(self, frames, contexts):
        """Functions and return addresses that are in use are places to stop at."""
        for (pc, _), context in zip(frames[1:], contexts[1:]):
            if pc < KERNEL or context == "entry" and pc in self.gaps.starts:
                continue
            if function_at(pc - 1)[0] == self.gaps.fork == "ret_from_fork_asm":
                continue  # below what it calls the stack ends, but not where it goes on
            places = [pc] if context == "entry" else [pc, pc - function_at(pc - 1)[1] - 1]
            self.places[context] += [p for p in places if p not in self.places[context]]

    def run(self, wait, place=None):
        """Runs until the place is reached, or for a time."""
        timer = threading.Timer(wait, self.connection.send, (b"\x03",))
        if place is not None:
            gdb.execute("tbreak *%#x" % place, to_string=True)
        timer.start()
        try:
            gdb.execute("continue", to_string=True)
        finally:
            timer.cancel()
            timer.join()
            gdb.execute("delete", to_string=True)

    def frames(self):
        self.gaps.forget()
        gdb.execute("maint flush register-cache", to_string=True)
        frames, error = gdb_frames(self.gaps)
        if any(0 <= pc - end < 1024 for pc, _ in frames for end in self.ends):
            raise gdb.GdbError("L2 has died")
        # The kernel's tables take error_entry and the entry that called it as one function,
        # once it has saved the registers: calling.h:PUSH_AND_CLEAR_REGS.
        for i, (pc, sp) in enumerate(frames[1:-1], 1):
            if self.gaps.is_entry(pc) and function_at(pc)[0] == "error_entry" and (pc, sp) not in self.gaps.regs:
                del frames[i + 1]
                break
        return frames, error

    def show(self, why, frames, error, kind):
        """Prints a stop with what nestdbg says of it."""
        answer = gdb.execute("monitor bt --json", to_string=True)
        self.count[kind] += 1
        line = {"why": why, "class": kind, "gdb": [{"pc": "%#x" % pc, "sp": "%#x" % sp} for pc, sp in frames],
                "error": error, "nestdbg": json.loads(answer)}
        print("\nSTOP " + json.dumps(line), flush=True)

    def once(self):
        total = sum(self.count.values()) + 1
        wanted = max(SHARES, key=lambda c: SHARES[c] * total / 100 - self.count[c])
        if self.random.random() < 0.2:
            why, place = "interrupted", None
            self.run(self.random.uniform(0.001, 0.1))
        else:
            place = self.random.choice(self.places[wanted])
            why = "stopped at %s+%d" % function_at(place)
            self.run(0.4, place)
        frames, error = self.frames()
        if not frames:
            return
        contexts = self.contexts(frames)
        if place is not None and frames[0][0] != place and len(self.places[wanted]) > 5:
            self.places[wanted].remove(place)  # hardly ever reached: do not wait for it again
        self.learn(frames, contexts)
        if frames[0][0] < KERNEL:
            return  # nothing to unwind
        if contexts[0] == "entry":
            self.entry(why, frames, error)
            return
        if self.random.random() < 0.4:
            steps = self.random.randint(1, 6)
            gdb.execute("stepi %d" % steps, to_string=True)
            why += ", %d steps" % steps
            frames, error = self.frames()
            contexts = self.contexts(frames)
            if frames[0][0] < KERNEL or contexts[0] == "entry":
                return
        kind = contexts[0]
        if "module" in contexts:
            kind = "module"
        self.show(why, frames, error, kind)

    def entry(self, why, frames, error):
        """In the middle of entry code only the tables say where the caller is, so the
        stack of where it is known is what must be there after some steps, too."""
        pc = frames[0][0]
        if pc not in self.gaps.starts and pc not in self.places["entry"]:
            return
        steps = self.random.randint(0, 45)
        for _ in range(steps):
            gdb.execute("stepi", to_string=True)
            if int(gdb.parse_and_eval("(unsigned long)$rip")) & MASK < KERNEL:
                return  # what comes next was interrupted elsewhere
        regs = [int(gdb.parse_and_eval("(unsigned long)$" + r)) & MASK for r in ("rip", "rsp")]
        if not self.gaps.is_entry(regs[0]):
            return
        self.show("%s, %d steps" % (why, steps), [tuple(regs)] + frames[1:], error, "entry")


def stops(count, seed, address, modules):
    s = Stops(seed, address, modules)
    print("\nREADY " + json.dumps({"first": "%#x" % s.gaps.first, "last": "%#x" % (s.gaps.last - 1)}), flush=True)
    while sum(s.count.values()) < count:
        s.once()
    print("\nDONE", flush=True)

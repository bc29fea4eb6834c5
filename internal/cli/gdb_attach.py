# Keeps gdb's inferiors in step with the machines of nestdbg, at each prompt:
# a machine that appeared is attached, once, so that what the person detached stays
# detached; one that had no kernel yet when it was attached is attached again for
# the kernel's symbols; an inferior whose machine ended goes, unless it is selected.
import gdb
import json


class _NestdbgSync:
    def __init__(self):
        # Inferiors by process; the number of a process is never given twice.
        self.seen = {i.pid: i.num for i in gdb.inferiors() if i.pid}
        self.bare = set()  # processes that are attached and had neither a kernel nor a file

    def __call__(self):
        attached = {i.pid: i.num for i in gdb.inferiors() if i.pid}
        if not attached:
            return  # the person wants nothing of the machines: not even a look
        try:
            text = gdb.execute("monitor status --json", to_string=True)
            machines = {m["process"]: m for m in json.loads(text)["machines"]}
        except (gdb.error, ValueError, KeyError):
            return
        self.seen.update(attached)
        for i in gdb.inferiors():
            if i.pid in machines and not machines[i.pid]["kernel"] and not i.progspace.filename:
                self.bare.add(i.pid)
        new = [pid for pid, m in sorted(machines.items()) if pid not in self.seen and m["vcpus"]]
        booted = [pid for pid in self.bare if pid in attached and pid in machines and machines[pid]["kernel"]]
        if new or booted:
            back = self.selected()
            for pid in new:
                self.add(pid, machines[pid])
            for pid in booted:
                self.again(pid, machines[pid], attached)
            back()
        self.remove(machines)

    def selected(self):
        """Returns what selects the inferior, thread and frame that are selected now."""
        number, thread = gdb.selected_inferior().num, gdb.selected_thread()
        try:
            frame = gdb.selected_frame()
        except gdb.error:
            frame = None  # of an inferior that does not run

        def back():
            if thread and thread.is_valid():
                thread.switch()
                if frame and frame.is_valid():
                    frame.select()
            elif gdb.selected_inferior().num != number:
                gdb.execute("inferior %d" % number, to_string=True)

        return back

    def add(self, pid, m):
        gdb.execute("add-inferior", to_string=True)
        number = self.seen[pid] = max(i.num for i in gdb.inferiors())
        if not m["kernel"]:
            self.bare.add(pid)
        if self.attach(number, pid, m["name"]):
            print("[nestdbg: %s is inferior %d]" % (m["name"], number))

    def again(self, pid, m, attached):
        self.bare.discard(pid)
        number = attached[pid]
        if len(attached) == 1:  # without any, the machine would run on meanwhile
            print("[nestdbg: %s has a kernel now; for its symbols: detach, attach %d]" % (m["name"], pid))
            return
        gdb.execute("inferior %d" % number, to_string=True)
        gdb.execute("detach", to_string=True)
        if self.attach(number, pid, m["name"]):
            print("[nestdbg: %s has a kernel now: its symbols are in inferior %d]" % (m["name"], number))

    def attach(self, number, pid, name):
        try:
            gdb.execute("inferior %d" % number, to_string=True)
            gdb.execute("attach %d" % pid, to_string=True)
            return True
        except gdb.error as e:
            print("[nestdbg: %s: %s]" % (name, e))
            return False

    def remove(self, machines):
        current = gdb.selected_inferior().num
        there = {i.num: i.pid for i in gdb.inferiors()}
        for pid, number in list(self.seen.items()):
            # Until gdb has heard of the end, at a resumption, the inferior has its process.
            if pid not in machines and there.get(number) == 0 and number != current:
                gdb.execute("remove-inferiors %d" % number, to_string=True)
                print("[nestdbg: inferior %d, whose machine ended, is removed]" % number)


if hasattr(gdb, "events") and hasattr(gdb.events, "before_prompt"):
    gdb.events.before_prompt.connect(_NestdbgSync())

# Keeps gdb's inferiors in step with the machines of nestdbg: a machine that
# appeared is attached at the next prompt, an inferior whose machine ended goes.
import gdb
import json


def _nestdbg_sync():
    try:
        text = gdb.execute("monitor status --json", to_string=True)
        machines = {m["process"]: m["name"] for m in json.loads(text)["machines"] if m["vcpus"]}
    except (gdb.error, ValueError, KeyError):
        return
    current = gdb.selected_inferior().num
    attached = {i.pid: i for i in gdb.inferiors() if i.pid}
    for pid, name in sorted(machines.items()):
        if pid in attached:
            continue
        gdb.execute("add-inferior", to_string=True)
        number = max(i.num for i in gdb.inferiors())
        gdb.execute("inferior %d" % number, to_string=True)
        try:
            gdb.execute("attach %d" % pid, to_string=True)
            print("[nestdbg: %s is inferior %d]" % (name, number))
        except gdb.error as e:
            print("[nestdbg: %s: %s]" % (name, e))
        gdb.execute("inferior %d" % current, to_string=True)


if hasattr(gdb, "events") and hasattr(gdb.events, "before_prompt"):
    gdb.events.before_prompt.connect(_nestdbg_sync)

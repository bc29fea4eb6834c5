# Runs inside gdb, which has the vendor's files and is connected to nestdbg's server,
# while everything stands still. Compares what "monitor print" and "monitor struct"
# say with what gdb knows from DWARF: the layout of some hundred structures, and
# every number of some large objects. Prints one line of JSON; see TestPrintWithGDB.
import gdb
import json
import re

LAYOUTS = 400
wrong = []


def complain(text):
    if len(wrong) < 40:
        wrong.append(text)


def ask(command):
    text = gdb.execute("monitor --json " + command, to_string=True)
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("monitor %s: %s" % (command, text.strip()))


COMPOSITE = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)


def under(t):
    return t.strip_typedefs().unqualified()


def spell(text):
    """A type's name without what BTF does not keep or gdb spells otherwise."""
    text = text.replace("_Bool", "bool").replace("const volatile", "volatile const").replace(" restrict", "")
    text = re.sub(r"\b(struct|union|enum) \{\.\.\.\}", r"\1", text)
    # BTF has an array of arrays as one, and does not tell [0] from [].
    def flat(m):
        count = 1
        for n in re.findall(r"\d+", m.group(0)):
            count *= int(n)
        return "[%d]" % count if count else "[]"
    text = re.sub(r"(\[\d+\])+", flat, text)
    return re.sub(r"\s+", "", text)


def gdb_members(t, base, out):
    """Name, offset and width in bits, and type of every member, also in anonymous ones."""
    for f in t.fields():
        at = base + f.bitpos
        if not f.name and under(f.type).code in COMPOSITE:
            gdb_members(under(f.type), at, out)
        else:
            out.append((f.name, at, f.bitsize, spell(str(f.type))))
    return out


def our_members(members, out):
    for m in members:
        if not m["name"] and "members" in m:
            our_members(m["members"], out)
        else:
            out.append((m["name"], 8 * m["offset"] + m.get("bit", 0), m.get("bits", 0), spell(m["type"])))
    return out


def layouts():
    """Compares structures, beginning with a few and going on with those in them and
    those they point to."""
    queue, seen, count, members = ["task_struct", "kvm_vcpu", "net", "rq", "module", "inode"], set(), 0, 0
    while queue and count < LAYOUTS:
        name = queue.pop(0)
        if name in seen:
            continue
        seen.add(name)
        try:
            t = gdb.lookup_type("struct " + name)
            if not t.fields():
                continue
        except gdb.error:
            continue  # of another machine's modules, or declared only
        answer = ask("struct struct " + name)
        ours = [(x["size"], our_members(x.get("members", []), [])) for x in answer["types"]]
        theirs = (t.sizeof, gdb_members(t, 0, []))
        count += 1
        members += len(theirs[1])
        if theirs not in ours:
            said = ours[0]
            difference = [(a, b) for a, b in zip(said[1], theirs[1]) if a != b][:3]
            complain("struct %s: size %d, gdb %d, %d members, gdb %d: %s" % (
                name, said[0], theirs[0], len(said[1]), len(theirs[1]), difference))
        for _, list in ours:
            for m in list:
                queue += re.findall(r"struct(\w+)", m[3])
    return count, members


def number(v, t):
    if t.code == gdb.TYPE_CODE_PTR:
        return int(v) & (2**64 - 1)
    return int(v)


def compare(path, v, ours):
    """Compares each number below a value; returns how many there were."""
    t = under(v.type)
    if t.code in COMPOSITE:
        fields = t.fields()
        got = ours.get("members", [])
        if len(got) != len(fields):
            complain("%s: %d members, gdb %d" % (path, len(got), len(fields)))
            return 0
        return sum(compare("%s.%s" % (path, f.name or i), v[f], got[i]) for i, f in enumerate(fields))
    if t.code == gdb.TYPE_CODE_ARRAY:
        low, high = t.range()
        if under(t.target()).code == gdb.TYPE_CODE_INT and "string" in ours:
            want = bytes(int(v[i]) & 0xff for i in range(low, high + 1))
            said = ours["string"].encode("latin-1", "replace")
            if want.split(b"\0")[0] != said:
                complain("%s: %r, gdb %r" % (path, said, want))
            return 1
        i, count = low, 0
        for e in ours.get("elements", []):
            for _ in range(e.get("repeat", 1)):
                if i <= high:
                    count += compare("%s[%d]" % (path, i), v[i], e)
                i += 1
        if i != high + 1 and "cut" not in ours:
            complain("%s: %d elements, gdb %d" % (path, i, high + 1))
        return count
    try:
        want = number(v, t)
    except gdb.MemoryError:
        if "fault" not in ours:
            complain("%s: %s, gdb cannot read it" % (path, ours))
        return 1
    if ours.get("number") != want:
        complain("%s: %s, gdb %d" % (path, ours, want))
    if t.code == gdb.TYPE_CODE_ENUM and ours.get("text", "").strip("()") != str(v).strip("()"):
        complain("%s: %s, gdb %s" % (path, ours.get("text"), v))
    return 1


def base(cpu):
    return int(gdb.parse_and_eval("__per_cpu_offset[%d]" % cpu)) & (2**64 - 1)


def per_cpu(name, cpu):
    """A CPU's copy. gdb moves the section with the rest of the kernel, though it is
    linked at 0."""
    v = gdb.parse_and_eval(name)
    offset = int(v.address) - int(gdb.parse_and_eval("(unsigned long)&__per_cpu_start"))
    return gdb.Value((offset + base(cpu)) & (2**64 - 1)).cast(v.type.pointer()).dereference()


def values():
    count = 0
    for expr in ["init_task", "init_mm", "init_net", "init_uts_ns", "init_cred", "*init_task.signal", "*init_task.nsproxy",
                 "*init_task.tasks.next", "init_pid_ns", "rcu_state", "boot_cpu_data", "iomem_resource", "*prb", "jiffies",
                 "init_task.comm", "&init_task.tasks", "init_task.tasks.next", "(unsigned char)init_task.flags", "-init_task.prio",
                 "sizeof(struct task_struct)", "init_task.prio * 3 - 7", "init_task.prio < 200", "init_task.flags >> 3",
                 "((struct task_struct *)((char *)init_task.tasks.next - 0x10))", "init_task.static_prio / -7", "init_task.cpus_mask.bits[0]",
                 "(long)init_task.flags << 40", "~init_task.flags", "init_task.signal->rlim[3].rlim_cur", "*init_task.sched_class"]:
        try:
            want = gdb.parse_and_eval(expr)
        except gdb.error as e:
            complain("gdb: %s: %s" % (expr, e))
            continue
        ours = ask("print --elements 100000 " + expr)["value"]
        count += compare(expr, want, ours)
    for cpu in range(int(gdb.parse_and_eval("nr_cpu_ids"))):
        for name in ["runqueues", "softnet_data", "cpu_info", "tick_cpu_sched", "hrtimer_bases", "process_counts"]:
            ours = ask("print --elements 100000 per_cpu(%s, %d)" % (name, cpu))["value"]
            count += compare("per_cpu(%s, %d)" % (name, cpu), per_cpu(name, cpu), ours)
    return count


def main():
    # A CPU that stopped in the kernel's assembly has gdb spell types as no C.
    gdb.execute("set language c")
    try:
        numbers = values()
        count, members = layouts()
        print("\nCOMPARED " + json.dumps({"numbers": numbers, "layouts": count, "members": members, "wrong": wrong}), flush=True)
    except Exception as e:
        print("\nCOMPARED " + json.dumps({"wrong": wrong + ["%s: %s" % (type(e).__name__, e)]}), flush=True)


main()

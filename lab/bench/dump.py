# Times gdb's own command for copying memory to a file, inside gdb.
import gdb
import time


def bench_dump(server, path, pieces):
    """Dump pieces, (first, end) each, to a file; server is the process that answers gdb."""

    def now():
        # Linux 6.1 include/linux/posix-timers.h:make_process_cpuclock, CPUCLOCK_SCHED
        of_server = time.clock_gettime_ns(~server << 3 | 2)
        return time.monotonic_ns(), time.process_time_ns(), of_server

    begin = now()
    how = "dump"
    for first, end in pieces:
        gdb.execute("%s binary memory %s %#x %#x" % (how, path, first, end))
        how = "append"
    print("bench: dump %d %d %d" % tuple(b - a for a, b in zip(begin, now())))


def bench_copy(source, path):
    with open(source) as i, open(path, "w") as o:
        o.write(i.read())

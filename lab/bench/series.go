package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// timing is what something took once.
type timing struct {
	wall time.Duration
	cpu  time.Duration // of all processes that took part; 0 if it was not measured
	gdb  time.Duration // gdb's part of cpu, where it was measured
}

// per is the timing of one of count equal parts.
func (t timing) per(count int) timing {
	n := time.Duration(count)
	return timing{wall: t.wall / n, cpu: t.cpu / n, gdb: t.gdb / n}
}

func (t timing) minus(u timing) timing { return timing{wall: t.wall - u.wall, cpu: t.cpu - u.cpu} }

// series is what the same thing took several times.
type series []timing

// best is the timing that others disturbed least: whatever else a machine does
// makes a measurement longer, never shorter. Wall clock and processor time each
// have their own best.
func (s series) best() timing {
	b := s[0]
	for _, t := range s {
		b.wall, b.cpu, b.gdb = min(b.wall, t.wall), min(b.cpu, t.cpu), min(b.gdb, t.gdb)
	}
	return b
}

// median is that of wall clock and processor time each.
func (s series) median() timing {
	var wall, cpu []time.Duration
	for _, t := range s {
		wall, cpu = append(wall, t.wall), append(cpu, t.cpu)
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	return timing{wall: wall[len(s)/2], cpu: cpu[len(s)/2]}
}

func (s series) worst() timing {
	w := s[0]
	for _, t := range s {
		w.wall, w.cpu = max(w.wall, t.wall), max(w.cpu, t.cpu)
	}
	return w
}

// contender is one of several ways to do something.
type contender struct {
	name string // for errors
	run  func(context.Context) (timing, error)
}

// interleave runs all contenders in turn, round after round, so that what else
// the machine does meets all of them alike. Each round begins with another one.
func interleave(ctx context.Context, rounds int, contenders ...contender) ([]series, error) {
	out := make([]series, len(contenders))
	for round := range rounds {
		for i := range contenders {
			at := (round + i) % len(contenders)
			t, err := contenders[at].run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", contenders[at].name, err)
			}
			out[at] = append(out[at], t)
		}
	}
	return out, nil
}

// clock reads the processor time of processes beside the wall clock.
type clock struct {
	wall time.Time
	cpu  time.Duration
	pids []int
}

// startClock starts measuring; pids are the processes that will work.
func startClock(pids ...int) (clock, error) {
	c := clock{pids: pids}
	var err error
	c.cpu, err = processorTime(pids)
	c.wall = time.Now()
	return c, err
}

// stop is the time since the start.
func (c clock) stop() (timing, error) {
	wall := time.Since(c.wall)
	cpu, err := processorTime(c.pids)
	return timing{wall: wall, cpu: cpu - c.cpu}, err
}

// processorTime is what processes have used so far, all their threads together.
func processorTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		// Source: Linux 6.1 include/linux/posix-timers.h:make_process_cpuclock,
		// with CPUCLOCK_SCHED.
		const sched = 2
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// monotonic is the clock that all processes of this host share.
func monotonic() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails for no valid argument
	return time.Duration(ts.Nano())
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"nestdbg/internal/qemu"
)

const (
	stateRounds  = 300
	statusRounds = 15
)

// timedProcess measures work of this process, all its threads together.
func timedProcess(work func() error) (timing, error) {
	k, err := startClock(os.Getpid())
	if err != nil {
		return timing{}, err
	}
	if err := work(); err != nil {
		return timing{}, err
	}
	return k.stop()
}

// measureLatency times a look at machines that run: the device state, for which
// QEMU stops them, and a whole "nestdbg status".
func (b *bench) measureLatency(ctx context.Context) ([]row, error) {
	t, err := qemu.Find(ctx, fmt.Sprint(b.lab.PID))
	if err != nil {
		return nil, err
	}
	m, err := qemu.Open(ctx, t)
	if err != nil {
		return nil, err
	}
	state := func() error { _, err := m.DeviceState(ctx); return err }
	question := func() error { _, _, err := m.Status(ctx); return err }
	s, err := interleave(ctx, stateRounds, asContender("device state", state), asContender("query-status", question))
	if err := errors.Join(err, m.Close()); err != nil {
		return nil, err
	}
	status, err := interleave(ctx, statusRounds, contender{"nestdbg status", b.status})
	if err != nil {
		return nil, err
	}
	return []row{{
		question: "device state of a running machine",
		ours:     brief(s[0].median().wall),
		theirs:   brief(s[1].median().wall) + ", QMP query-status",
		ratio:    fmt.Sprintf("%.1f", s[0].median().wall.Seconds()/s[1].median().wall.Seconds()),
		notes: []string{"medians; an upper bound of how long the guests stand still for a look",
			spread("device state", s[0]), spread("query-status", s[1])},
	}, {
		question: "nestdbg status, from nothing",
		ours:     brief(status[0].best().wall),
		notes: []string{"a process of its own: find QEMU, map its RAM, find both kernels, KVM's guest and symbols",
			spread("nestdbg status", status[0])},
	}}, nil
}

// asContender makes a contender of work inside this process.
func asContender(name string, work func() error) contender {
	return contender{name, func(context.Context) (timing, error) { return timedProcess(work) }}
}

// status runs "nestdbg status" once.
func (b *bench) status(ctx context.Context) (timing, error) {
	cmd := exec.CommandContext(ctx, b.nestdbg, "-t", fmt.Sprint(b.lab.PID), "status")
	begin := time.Now()
	text, err := cmd.CombinedOutput()
	if err != nil {
		return timing{}, fmt.Errorf("%w: %s", err, text)
	}
	return timing{wall: time.Since(begin), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// host is the machine that everything runs on.
type host struct {
	cpu, qemu, gdb string
	load           string // at the start
	begin          time.Time
}

func newHost(ctx context.Context) (*host, error) {
	h := &host{begin: time.Now(), cpu: "unknown processor"}
	var err error
	if h.load, err = loadAverage(); err != nil {
		return nil, err
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(l, "model name\t: "); ok {
			h.cpu = strings.TrimSpace(name)
			break
		}
	}
	for _, p := range []struct {
		program string
		version *string
	}{{"qemu-system-x86_64", &h.qemu}, {"gdb", &h.gdb}} {
		text, err := exec.CommandContext(ctx, p.program, "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.program, err)
		}
		*p.version = line(string(text))
	}
	return h, nil
}

// loadAverage is that of the last minute, 5 and 15 minutes.
func loadAverage() (string, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(text))
	return strings.Join(f[:min(3, len(f))], " "), nil
}

// describe says where and when the figures were measured.
func (h *host) describe(kernel string) string {
	now, _ := loadAverage() // worked before
	return fmt.Sprintf("%s, %d processors; load average %s at the start, %s at the end; %s; %s; "+
		"both kernels Linux %s; %.0f s in all.\n"+
		"Figures are the best of several runs that take turns with those they are compared with, unless a note says "+
		"otherwise. A load above the number of processors makes wall clock times long; what survives it are ratios and "+
		"processor times.",
		h.cpu, runtime.NumCPU(), h.load, now, h.qemu, h.gdb, kernel, time.Since(h.begin).Seconds())
}

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// The monitor in Bochs has VMX. Like the other lab in Bochs it leaves its memory.

// bochsMonitorMemory has a page of 1 GiB in it. What is never touched costs nothing.
const bochsMonitorMemory = 2560 << 20

func bochsMonitorDefaults(o *Options) {
	setDefault(&o.CPUs, 1)
	setDefault(&o.Memory, bochsMonitorMemory)
	if o.Kernel != "" {
		setDefault(&o.Timeout, bochsTimeout)
	}
	setDefault(&o.Timeout, 2*time.Minute)
}

func (o Options) checkBochsMonitor() error {
	switch {
	case o.CPUs != 1:
		return fmt.Errorf("%d CPUs for L1: Bochs has 1", o.CPUs)
	case o.Memory > bochsMonitorMemory:
		return fmt.Errorf("memory of %dM: in Bochs at most %dM", o.Memory>>20, bochsMonitorMemory>>20)
	case o.NoWait:
		return errors.New("a lab in Bochs has to be waited for: what is left of it is its memory")
	}
	return o.checkMonitor()
}

// prepareBochsMonitor is prepareMonitor for a machine with VMX.
func prepareBochsMonitor(ctx context.Context, l *Lab, c cache, o Options) (files, error) {
	bochs, err := findBochsTools()
	if err != nil {
		return files{}, err
	}
	o.QEMU = bochs
	return prepareMonitor(ctx, l, c, o)
}

// monitorTold reports whether the monitor is ready, and has seen the crash that it was
// asked for.
func (o Options) monitorTold(l *Lab) (bool, error) {
	said, err := os.ReadFile(l.Machines[0].Log)
	if err != nil {
		return false, err
	}
	done, err := o.monitorUp(said)
	done = done && (!strings.Contains(o.Append, "crash=") || bytes.Contains(said, []byte("\n"+monitorCrash)))
	if done {
		l.heard(said)
	}
	return done, err
}

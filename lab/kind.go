package lab

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
)

// The kinds of labs, for Options.Kind.
const (
	// LinuxKind is Linux with KVM as L1, and Linux in its VMs.
	LinuxKind = "linux"
	// MonitorKind is the hypervisor in lab/monitor as L1, and its program in its VMs.
	MonitorKind = "monitor"
	// BochsKind is LinuxKind with KVM for Intel, in the emulator Bochs; it is over when
	// it is up, and leaves its memory.
	BochsKind = "bochs"
	// BochsMonitorKind is MonitorKind with VMX, in Bochs too.
	BochsMonitorKind = "bochs-monitor"
)

// kind is what labs of a kind do in their own way.
type kind struct {
	defaults func(*Options)
	check    func(Options) error
	// start starts the machines in the lab's directory, which exists; nil for QEMU.
	start func(*Lab, Options, files) error
	// prepare gets what QEMU needs, and describes the machines.
	prepare func(context.Context, *Lab, cache, Options) (files, error)
	// arguments are those of QEMU that not every lab has.
	arguments func(Options, files) []string
	// listens fails while QEMU has not opened all of its sockets.
	listens func(*Lab) error
	// wait waits until the machines are up; cancel ends ctx with a reason.
	wait func(ctx context.Context, cancel context.CancelCauseFunc, l *Lab, o Options) error
}

// kinds by their names.
var kinds = map[string]kind{
	LinuxKind: {
		defaults: linuxDefaults, check: Options.checkLinux, prepare: prepareLinux, arguments: Options.linuxArguments,
		listens: (*Lab).agentsListen, wait: waitMachines,
	},
	MonitorKind: {
		defaults: monitorDefaults, check: Options.checkMonitor, prepare: prepareMonitor, arguments: Options.monitorArguments,
		listens: (*Lab).consoleListens, wait: waitMonitor,
	},
	BochsKind: {
		defaults: bochsDefaults, check: Options.checkBochs, prepare: prepareBochs, start: startBochs,
		listens: func(*Lab) error { return nil }, wait: waitBochs,
	},
	BochsMonitorKind: {
		defaults: bochsMonitorDefaults, check: Options.checkBochsMonitor, prepare: prepareBochsMonitor, start: startBochs,
		listens: func(*Lab) error { return nil }, wait: waitBochs,
	},
}

// Kinds are the names of all kinds.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds)) }

// checkKind fails for a kind that there is not.
func (o Options) checkKind() error {
	if _, ok := kinds[o.Kind]; !ok {
		return fmt.Errorf("kind %q: there are %s", o.Kind, strings.Join(Kinds(), ", "))
	}
	return nil
}

// agentsListen connects to every agent's channel; a connection to QMP or gdb would
// have effects.
func (l *Lab) agentsListen() error {
	for _, m := range l.Machines {
		if err := l.touch(agentSocket(m.Name)); err != nil {
			return err
		}
	}
	return nil
}

// consoleListens connects to L1's console.
func (l *Lab) consoleListens() error { return l.touch(consoleSocket(L1)) }

func (l *Lab) touch(socket string) error {
	conn, err := net.Dial("unix", filepath.Join(l.Dir, socket))
	if err != nil {
		return err
	}
	return conn.Close()
}

package qemu

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestDeviceState(t *testing.T) {
	t.Parallel()
	for name, qmp := range map[string]string{"unix": "", "tcp": "tcp:127.0.0.1:" + freePort() + ",server=on,wait=off"} {
		t.Run(name, func(t *testing.T) {
			args := []string{"-M", "q35", "-m", "32M", "-qmp", "unix:DIR/qmp,server=on,wait=off"}
			if qmp != "" {
				args[len(args)-1] = qmp
			}
			m := startWith(t, args, nil).open(t)
			ctx := deadline(t, 20*time.Second)
			temp, _ := filepath.Glob(filepath.Join(os.TempDir(), "nestdbg-*"))
			for _, run := range []bool{false, true} {
				if run {
					if err := m.ContMachine(ctx); err != nil {
						t.Fatal(err)
					}
				}
				for range 3 {
					b, err := m.DeviceState(ctx)
					if err != nil || len(b) < 4 || string(b[:4]) != "QEVM" {
						t.Fatalf("%d bytes, %v", len(b), err)
					}
					checkRunning(t, m, run)
				}
			}
			if after, _ := filepath.Glob(filepath.Join(os.TempDir(), "nestdbg-*")); len(after) > len(temp) {
				t.Errorf("left behind: %v", after)
			}
		})
	}
}

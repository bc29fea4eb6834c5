package target

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// startQEMU opens a real QEMU without a guest, whose machine stands.
func startQEMU(t *testing.T) *Live {
	t.Helper()
	dir, err := os.MkdirTemp("", "nd") // short, for the path of the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "qmp")
	cmd := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config", "-display", "none", "-m", "64M",
		"-qmp", "unix:"+path+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		l, err := Open(t.Context(), fmt.Sprint(cmd.Process.Pid))
		if err == nil {
			t.Cleanup(func() { l.Close() })
			return l
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A copy of a machine that somebody lets run meanwhile is no snapshot, whether it ran
// before or not.
func TestSaveWhileSomebodyRunsIt(t *testing.T) {
	for _, running := range []bool{false, true} {
		for _, disturbed := range []bool{false, true} {
			l := startQEMU(t)
			if running {
				if err := l.qemu.ContMachine(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			var once sync.Once
			dir := filepath.Join(t.TempDir(), "snap")
			_, err := l.Save(t.Context(), dir, SaveOptions{
				Expect: func(context.Context) {},
				Progress: func(uint64, uint64) {
					if disturbed {
						once.Do(func() { l.qemu.ContMachine(t.Context()) })
					}
				},
			})
			_, left := os.Stat(dir)
			if !disturbed && (err != nil || left != nil) {
				t.Errorf("running %v: %v, %v", running, err, left)
			}
			if disturbed && (err == nil || !strings.Contains(err.Error(), "run while") || left == nil) {
				t.Errorf("running %v, and somebody lets it run: %v, left is %v", running, err, left == nil)
			}
		}
	}
}

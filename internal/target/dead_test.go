package target

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMemoryOfARunningMachine: a memory file that a QEMU still has is opened, and it is
// said whose it is; when that QEMU is gone it is a file like any other.
func TestMemoryOfARunningMachine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	cmd := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
		"-machine", "q35,memory-backend=main", "-m", "16M", "-object", "memory-backend-file,id=main,share=on,size=16M,mem-path="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var st os.FileInfo
	for begin := time.Now(); st == nil || st.Size() == 0; time.Sleep(10 * time.Millisecond) {
		if st, _ = os.Stat(path); time.Since(begin) > 20*time.Second {
			t.Fatal("QEMU makes no memory file")
		}
	}
	text := func() string {
		target, err := Recognise(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		return strings.Join(target.Describe().Problems, "\n")
	}
	if got := text(); !strings.Contains(got, fmt.Sprintf("-t %d", cmd.Process.Pid)) {
		t.Errorf("while it runs: problems %q", got)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if got := text(); got != "" {
		t.Errorf("when it is gone: problems %q", got)
	}
}

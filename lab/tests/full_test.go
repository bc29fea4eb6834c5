package tests

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// onFullDisk runs a command with a small file system of its own mounted at $0, which
// nobody else sees, and says what it left there.
const onFullDisk = `mount -t tmpfs -o size=16m nestdbg-test "$0" || exit 99
"$@"
status=$?
echo "left: $(ls -A "$0")"
exit $status`

// TestDiskFull: a save or an export for which the disk is too small is an error that
// says so, and leaves nothing.
func TestDiskFull(t *testing.T) {
	l := sharedLab(t, "kaslr")
	thaw := freeze(t, l)
	defer thaw()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"export", "vmcore", "-m", "l1", "-o", filepath.Join(dir, "x")},
		{"export", "vmcore", "-m", "l1", "-o", filepath.Join(dir, "x"), "--format", "kdump-zlib"},
		{"export", "vmcore", "-m", "vm0", "-o", filepath.Join(dir, "x"), "--format", "raw"},
		{"snapshot", "save", filepath.Join(dir, "x")},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		// A mount namespace needs a user namespace, unless the test has the right to it.
		unshare := []string{"--mount", "sh", "-c", onFullDisk, dir, suite.binary}
		if os.Getuid() != 0 {
			unshare = append([]string{"--map-root-user"}, unshare...)
		}
		out, err := exec.CommandContext(ctx, "unshare", append(unshare, on(l, args...)...)...).CombinedOutput()
		cancel()
		text := string(out)
		if err == nil || !strings.Contains(text, "no space left on device") || strings.Count(text, "\n") != 2 || !strings.HasSuffix(text, "left: \n") {
			t.Errorf("%q: %v\n%s", args, err, text)
		}
	}
	if got := runState(t, l); got != "paused" {
		t.Errorf("the machine is %s", got)
	}
}

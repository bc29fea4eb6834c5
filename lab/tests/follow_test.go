package tests

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// follow starts "dmesg -w --json" and returns what it wrote so far, line by line.
func follow(t *testing.T, l *lab.Lab, machine string) (*exec.Cmd, func() []string) {
	t.Helper()
	var out, errOut lockedBuffer
	cmd := exec.Command(suite.binary, on(l, "dmesg", "-w", "--json", "-m", machine)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGCONT)
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil || errOut.String() != "" {
			t.Errorf("dmesg -w, interrupted: %v, %s", err, &errOut)
		}
	})
	return cmd, func() []string { return strings.SplitAfter(out.String(), "\n") }
}

// followed is a line of "dmesg -w --json".
type followed struct {
	Seq     *uint64
	Text    string
	Lost    *lostRun
	Problem string
}

// checkFollowed checks that every record came once and in order, or was reported as
// lost, and returns the texts that begin with mark and the number of lost records.
func checkFollowed(t *testing.T, lines []string, mark string) (texts []string, lost uint64) {
	t.Helper()
	next, known := uint64(0), false
	advance := func(from, to uint64) {
		if known && from != next {
			t.Errorf("record %d after %d", from, next-1)
		}
		next, known = to+1, true
	}
	for _, line := range lines {
		if line == "" {
			continue
		}
		var x followed
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		switch {
		case x.Lost != nil:
			lost += x.Lost.To - x.Lost.From + 1
			advance(x.Lost.From, x.Lost.To)
		case x.Seq == nil:
			t.Errorf("line %q", line)
		default:
			advance(*x.Seq, *x.Seq)
			if strings.HasPrefix(x.Text, mark) {
				texts = append(texts, x.Text)
			}
		}
	}
	return texts, lost
}

// TestFollowLog follows the logs while they are written to.
func TestFollowLog(t *testing.T) { eachMachine(t, checkFollowing) }

func checkFollowing(t *testing.T, l *lab.Lab, name string) {
	const count = 100
	_, lines := follow(t, l, name)
	eventually(t, "the log so far", commandLimit, func() bool { return len(lines()) > 10 })
	mark := fmt.Sprintf("follow %d ", time.Now().UnixNano())
	ask(t, l, name, fmt.Sprintf(
		`exec i=0; while [ $i -lt %d ]; do echo "%s$i" > /dev/kmsg; i=$((i+1)); done`, count, mark))
	written := time.Now()
	last := fmt.Sprintf(`"text":"%s%d"`, mark, count-1)
	eventually(t, "the last record", time.Second+followSlack, func() bool {
		return strings.Contains(strings.Join(lines(), ""), last)
	})
	t.Logf("the last record came %v after it was written", time.Since(written))
	texts, lost := checkFollowed(t, lines(), mark)
	for i, text := range texts {
		if text != fmt.Sprintf("%s%d", mark, i) {
			t.Errorf("record %d is %q", i, text)
		}
	}
	if len(texts) != count || lost != 0 {
		t.Errorf("%d records of %d, %d lost", len(texts), count, lost)
	}
}

// followSlack is for a machine whose two processors have other things to do.
const followSlack = 2 * time.Second

// TestFollowLoss lets the guest write more than its log holds while nobody reads.
func TestFollowLoss(t *testing.T) {
	l := sharedLab(t, "kaslr")
	cmd, lines := follow(t, l, "l1")
	eventually(t, "the log so far", commandLimit, func() bool { return len(lines()) > 10 })
	before := lines()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// 3 MiB in records of 512 bytes; the buffer is smaller.
	mark := fmt.Sprintf("flood %d ", time.Now().UnixNano())
	ask(t, l, "l1", "exec set -e; echo on > /proc/sys/kernel/printk_devkmsg; "+
		`yes xxxxxxxxxxxxxxx | tr '\n' x | dd bs=512 count=6000 iflag=fullblock of=/dev/kmsg 2> /dev/null; `+
		"echo ratelimit > /proc/sys/kernel/printk_devkmsg; echo '"+mark+"end' > /dev/kmsg")
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record after the loss", time.Second+followSlack, func() bool {
		return strings.Contains(strings.Join(lines(), ""), mark+"end")
	})
	after := lines()
	texts, lost := checkFollowed(t, after, strings.Repeat("x", 32))
	for _, text := range texts {
		if strings.Trim(text, "x") != "" || len(text) != 512 {
			t.Errorf("torn: %d bytes %.40q", len(text), text)
		}
	}
	if total := uint64(len(texts)) + lost; lost == 0 || total < 6000 {
		t.Errorf("%d records and %d lost, of 6000", len(texts), lost)
	}
	t.Logf("%d lines before, %d after, %d records lost", len(before), len(after), lost)
}

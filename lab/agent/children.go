package agent

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
)

// children starts processes and reaps those that nobody waits for: an init
// process inherits every orphan.
type children struct {
	mu  sync.Mutex
	own map[int]bool // guarded by mu: processes that somebody here waits for
}

func newChildren() *children {
	c := &children{own: make(map[int]bool)}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() {
		for range died {
			c.reapOrphans()
		}
	}()
	return c
}

// start starts cmd; wait must follow.
func (c *children) start(cmd *exec.Cmd) error {
	// Held over the start, so that a process that dies at once is not taken for
	// an orphan.
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	c.own[cmd.Process.Pid] = true
	return nil
}

// wait waits for a process that start started.
func (c *children) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.own, cmd.Process.Pid)
	return err
}

// run is start and wait.
func (c *children) run(cmd *exec.Cmd) error {
	if err := c.start(cmd); err != nil {
		return err
	}
	return c.wait(cmd)
}

// reapOrphans collects dead children that are not our own. wait4(-1) would
// take the exit status away from exec.Cmd, hence the look at every process.
func (c *children) reapOrphans() {
	all, err := listTasks()
	if err != nil {
		return // the next death tries again
	}
	self := os.Getpid()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range all {
		if t.State == "Z" && t.PPID == self && t.PID == t.TGID && !c.own[t.PID] {
			syscall.Wait4(t.PID, nil, syscall.WNOHANG, nil)
		}
	}
}

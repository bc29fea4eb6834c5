package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
)

// Numbers of the machines for gdb, and the name of the nested one for nestdbg
// and the lab alike: there is only one.
const (
	l1Process = 1
	vmProcess = 2
	vm        = "vm0"
)

// askLimit bounds the wait for a machine's agent. One that takes longer hangs.
const askLimit = 40 * time.Second

// bench is what all measurements share.
type bench struct {
	nestdbg string // the program
	dir     string // for sockets and files
	symbols string // directory with a vmlinux, "" if there is none
	lab     *lab.Lab
}

// ask asks a machine's agent.
func (b *bench) ask(ctx context.Context, machine, request string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answer, err := b.lab.Ask(ctx, machine, request)
	return string(answer), err
}

// view is nestdbg in this process, after one look.
type view struct {
	*session.Session
	live *target.Live
}

// look opens the lab's QEMU in this process and looks at it.
func (b *bench) look(ctx context.Context) (*view, error) {
	live, err := target.Open(ctx, fmt.Sprint(b.lab.PID))
	if err != nil {
		return nil, err
	}
	v := &view{session.New(live), live}
	if _, err := v.Look(ctx, session.Full); err != nil {
		return nil, errors.Join(err, live.Close())
	}
	return v, nil
}

func (v *view) close() { v.live.Close() }

// symbol is the address of a function of L2's kernel.
func (b *bench) symbol(ctx context.Context, name string) (uint64, error) {
	v, err := b.look(ctx)
	if err != nil {
		return 0, err
	}
	defer v.close()
	m, err := v.Machine(vm)
	if err != nil {
		return 0, err
	}
	k, err := v.Kernel(m)
	if err != nil {
		return 0, err
	}
	addr, ok := k.Lookup(name)
	if !ok {
		return 0, fmt.Errorf("%s has no symbol %s", vm, name)
	}
	return uint64(addr), nil
}

// monitor gives QEMU a line of its own monitor, "stop" or "cont".
func (b *bench) monitor(ctx context.Context, line string) error {
	live, err := target.Open(ctx, fmt.Sprint(b.lab.PID))
	if err != nil {
		return err
	}
	_, err = live.HMP(ctx, line)
	return errors.Join(err, live.Close())
}

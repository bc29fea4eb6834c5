// Nestdbg debugs nested guests: the virtual machines that run inside a
// hypervisor that itself runs in QEMU.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"nestdbg/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP, os.Interrupt)
	status := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

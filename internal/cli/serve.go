package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/debugfile"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
)

func (a *app) serveCommand() *cobra.Command {
	var listen string
	var remote bool
	c := &cobra.Command{
		Use: "serve", Short: "Serve every machine to gdb, one inferior each", Args: noArgs,
		Long: `Serve the gdb remote protocol. Every machine is a process of its own: 1 is l1, then
its guests. With gdb: "target extended-remote ADDR", then "attach 1", "add-inferior",
"inferior 2", "attach 2"; "nestdbg gdb" does all that by itself.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.serve(c.Context(), listen, remote) },
	}
	c.Flags().StringVar(&listen, "listen", "", "unix:PATH or HOST:PORT (default: a unix socket in a private directory)")
	a.debuginfodFlag(c)
	c.Flags().BoolVar(&remote, "allow-remote", false, "let --listen be an address that other hosts can reach")
	return c
}

// debuginfodFlag adds --debuginfod: nobody's build ids leave this host unasked.
func (a *app) debuginfodFlag(c *cobra.Command) {
	c.Flags().BoolVar(&a.debuginfod, "debuginfod", false,
		"ask the servers of DEBUGINFOD_URLS for debug information that is not here")
}

func (a *app) serve(ctx context.Context, listen string, remote bool) error {
	if err := a.open(ctx); err != nil {
		return err
	}
	if err := a.sayHolder(ctx); err != nil {
		return err
	}
	if err := a.look(ctx, session.Full); err != nil {
		return err
	}
	l, clean, err := listener(listen, remote)
	if err != nil {
		return err
	}
	defer clean()
	fmt.Fprintf(a.out, "listening on %s\n", l.Addr())
	settle()
	return a.accept(ctx, l, a.newFiles())
}

// sayHolder says who has QEMU's gdbstub. Whoever attaches hears of it too, but gdb 13
// prints no reason. The stub may be free by then, so it is no reason not to serve.
func (a *app) sayHolder(ctx context.Context) error {
	err := a.target.CheckStub(ctx)
	if err == nil || errors.Is(err, session.ErrGone) {
		return err
	}
	fmt.Fprintf(a.errOut, "nestdbg: nobody can attach now: %v\n", err)
	return nil
}

// serverGCPercent lets a third of what is in use be garbage.
const serverGCPercent = 33

// settle is for what lives long beside a machine that needs the memory: less garbage
// is worth a little time, and what finding the kernels took goes back now.
func settle() {
	debug.SetGCPercent(serverGCPercent)
	debug.FreeOSMemory()
}

// accept serves one client after the other until ctx is done or QEMU ends, which is
// the only end that is an error. In the end it closes files.
func (a *app) accept(ctx context.Context, l net.Listener, files *session.Files) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(a.waitEnd(ctx)) }()
	go func() { <-ctx.Done(); l.Close() }()
	defer func() {
		if err := files.Close(); err != nil {
			a.log().Warn("files made for gdb", "error", err)
		}
	}()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err := context.Cause(ctx); errors.Is(err, session.ErrGone) {
				return err
			}
			return nil
		}
		if err != nil {
			return err
		}
		err = a.serveClient(ctx, conn, files)
		if errors.Is(err, session.ErrGone) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			a.log().Warn("client", "error", err)
		}
	}
}

// lastWords is the time that a client gets to hear of the end of QEMU, which it
// may wait for, before it is hung up on.
const lastWords = 500 * time.Millisecond

// waitEnd waits for the end of QEMU, or of ctx.
func (a *app) waitEnd(ctx context.Context) error {
	err := a.target.WaitEnd(ctx)
	select {
	case <-ctx.Done():
	case <-time.After(lastWords):
	}
	return err
}

// newFiles finds and makes what gdb wants to know of kernels.
func (a *app) newFiles() *session.Files {
	var ask func(string) string
	if a.debuginfod {
		ask = debugfile.Debuginfod
	}
	files := session.NewFiles(a.session, a.images.dirs, ask, a.log())
	files.Load(a.images.byMachine)
	return files
}

// serveClient serves one connection to its end.
func (a *app) serveClient(ctx context.Context, conn net.Conn, files *session.Files) (err error) {
	defer mem.Catch(&err)()
	defer conn.Close()
	if _, err := a.session.Look(ctx, session.Full); err != nil {
		return err
	}
	d := session.NewDebugger(a.session, a.target.OpenStub, a.log())
	t := d.Target(files, &monitor{app: a, debugger: d})
	return gdbserver.Serve(ctx, conn, t, gdbserver.Options{Log: a.log()})
}

// listener opens what --listen says. clean removes what was made for it.
func listener(listen string, remote bool) (l net.Listener, clean func(), err error) {
	clean = func() {}
	switch path, isUnix := strings.CutPrefix(listen, "unix:"); {
	case listen == "":
		dir, err := os.MkdirTemp(runtimeDir(), "nestdbg-") // mode 0700
		if err != nil {
			return nil, nil, err
		}
		l, err = listenUnix(filepath.Join(dir, "gdb"))
		return l, func() { os.RemoveAll(dir) }, err
	case isUnix:
		if l, err = listenUnix(path); err != nil {
			return nil, nil, usagef("--listen %s: %w", listen, err)
		}
		return l, clean, nil
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, nil, usagef("--listen %q is neither unix:PATH nor HOST:PORT", listen)
	}
	if ip := net.ParseIP(host); !remote && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, nil, usagef("--listen %s can be reached from other hosts, and gdb's protocol has no password; "+
			"use 127.0.0.1, or --allow-remote if that is what you want", listen)
	}
	if l, err = net.Listen("tcp", listen); err != nil {
		return nil, nil, usagef("--listen %s: %w", listen, err)
	}
	return l, clean, nil
}

// listenUnix opens a socket that only its owner can use.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// runtimeDir is where sockets belong; "" means the system's temporary directory.
func runtimeDir() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		if st, err := os.Stat(d); err == nil && st.IsDir() {
			return d
		}
	}
	return ""
}

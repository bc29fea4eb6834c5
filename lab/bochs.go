package lab

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/lab/agent"
)

// A lab of the kind "bochs" is over when it is up: Bochs has no interface that nestdbg
// knows, so its memory is written to a file, which is what is left to look at.

const (
	bochsTimeout = 20 * time.Minute
	bochsMemory  = 1536 << 20
	// bochsHost is the most that Bochs takes of its host: what of a larger memory is never
	// touched needs none.
	bochsHost   = 2 << 30
	bochsConfig = "bochsrc"
	bochsLog    = "bochs.log"
	bochsISO    = "l1.iso"
	bochsScreen = "screen" // what Bochs draws on its terminal
	// bochsIPS is how many instructions are a second for the machine: about as many as
	// Bochs does, so that its timer does not take all of them.
	bochsIPS = 50_000_000
)

// bochsFiles are what the machine needs, with the packages that have them.
var bochsFiles = []struct{ path, pkg string }{
	{"/usr/share/bochs/BIOS-bochs-latest", "bochsbios"},
	{"/usr/share/bochs/VGABIOS-lgpl-latest", "vgabios"},
	{"/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"},
	{"/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin"},
}

func bochsDefaults(o *Options) {
	setDefault(&o.CPUs, 1)
	setDefault(&o.Memory, bochsMemory)
	setDefault(&o.Timeout, bochsTimeout)
	linuxDefaults(o)
}

func (o Options) checkBochs() error {
	switch {
	case o.CPUs != 1:
		return fmt.Errorf("%d CPUs for L1: Bochs has 1", o.CPUs)
	case o.VMs < 1:
		return errors.New("no VM: a lab in Bochs is to have one")
	case o.Depth > 2:
		return fmt.Errorf("depth %d: there are no VMs in VMs in Bochs", o.Depth)
	case o.Memory > 2<<30:
		return fmt.Errorf("memory of %dM: in Bochs at most 2G", o.Memory>>20)
	case o.NoWait:
		return errors.New("a lab in Bochs has to be waited for: what is left of it is its memory")
	}
	return o.checkLinux()
}

// findBochsTools finds Bochs, and names all packages that are missing.
func findBochsTools() (path string, err error) {
	var missing []string
	for _, p := range []struct{ program, pkg string }{
		{"bochs", "bochs"}, {"grub-mkrescue", "grub-common"}, {"xorriso", "xorriso"}, {"mformat", "mtools"},
	} {
		found, err := exec.LookPath(p.program)
		if err != nil {
			missing = append(missing, p.pkg)
		}
		if p.program == "bochs" {
			path = found
		}
	}
	for _, f := range bochsFiles {
		if _, err := os.Stat(f.path); err != nil {
			missing = append(missing, f.pkg)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("this lab needs packages that are not installed: apt-get install %s", strings.Join(missing, " "))
	}
	return path, nil
}

// prepareBochs is prepareLinux for a machine with VMX.
func prepareBochs(ctx context.Context, l *Lab, c cache, o Options) (files, error) {
	bochs, err := findBochsTools()
	if err != nil {
		return files{}, err
	}
	f, err := prepareLinux(ctx, l, c, o)
	f.qemu = bochs
	return f, err
}

// startBochs starts Bochs on a terminal of our own; it needs one, and ends with it.
func startBochs(l *Lab, o Options, f files) (err error) {
	if l.MemoryFile, err = createMemoryFile(memDir, l.Dir, o.Name, o.Memory); err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	o.Progress("making a CD of kernel and initramfs")
	if err := makeISO(l.Dir, o, f); err != nil {
		return err
	}
	if err := writeBochsConfig(l.Dir, o); err != nil {
		return err
	}
	master, tty, err := openPTY()
	if err != nil {
		return fmt.Errorf("open a terminal for Bochs: %w", err)
	}
	defer tty.Close()
	l.Command = []string{f.qemu, "-q", "-f", bochsConfig, "-rc", "debugger"}
	cmd := exec.Command(l.Command[0], l.Command[1:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = l.Dir, tty, tty, tty
	cmd.Env = append(os.Environ(), "TERM=vt100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start Bochs: %w", err), master.Close())
	}
	start, err := startTime(cmd.Process.Pid)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	go drain(master, filepath.Join(l.Dir, bochsScreen))
	if err != nil {
		cmd.Process.Kill()
		return err
	}
	l.PID, l.StartTicks, l.exited, l.Running, l.Started = cmd.Process.Pid, start, exited, true, time.Now()
	return l.save()
}

// drain reads the terminal, so that Bochs is never stuck writing to it, and keeps the
// last of it for people who want to know why nothing happens.
func drain(master *os.File, path string) {
	defer master.Close()
	const keep = 64 << 10
	var last []byte
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		last = append(last, buf[:n]...)
		if len(last) > keep {
			last = last[len(last)-keep:]
		}
		if err != nil {
			os.WriteFile(path, last, 0o600) // the lab may be gone, with its directory
			return
		}
	}
}

// openPTY opens a pair of terminals (Linux document pty(7), pts(4)).
func openPTY() (master, tty *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100})
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, tty, nil
}

// makeISO makes the CD that L1 starts from.
func makeISO(dir string, o Options, f files) error {
	root := filepath.Join(dir, "cd")
	if err := os.MkdirAll(filepath.Join(root, "boot/grub"), 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(root)
	grub := "set timeout=0\nmenuentry l1 {\n\t" + o.bochsMenu() + "\n}\n"
	if err := os.WriteFile(filepath.Join(root, "boot/grub/grub.cfg"), []byte(grub), 0o600); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(root, "boot/kernel"), f.kernel, false); err != nil {
		return err
	}
	if f.initramfs != "" {
		// The machine reads slower than it unpacks, where somebody unpacks it.
		if err := copyFile(filepath.Join(root, "boot/initrd"), f.initramfs, o.Kind == BochsKind); err != nil {
			return err
		}
	}
	cmd := exec.Command("grub-mkrescue", "-o", filepath.Join(dir, bochsISO), "-d", "/usr/lib/grub/i386-pc", root)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("grub-mkrescue: %w: %s", err, out)
	}
	return nil
}

// copyFile copies a file, compressed if it is to be.
func copyFile(to, from string, compress bool) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if !compress {
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Close())
	}
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	_, err = io.Copy(z, in)
	return errors.Join(err, z.Close(), out.Close())
}

// bochsMenu is how GRUB starts L1.
func (o Options) bochsMenu() string {
	if o.Kind == BochsMonitorKind {
		menu := "multiboot2 /boot/kernel " + o.monitorCommandLine()
		if o.Kernel != "" {
			menu += "\n\tmodule2 /boot/initrd"
		}
		return menu
	}
	return "linux /boot/kernel " + o.bochsCommandLine() + "\n\tinitrd /boot/initrd"
}

// bochsCommandLine is L1's. The clock of the machine is its instructions, which no other
// clock agrees with.
func (o Options) bochsCommandLine() string {
	return strings.TrimSpace(o.l1CommandLine() + " tsc=reliable mitigations=off")
}

// writeBochsConfig writes what Bochs is told. Without the displays that need a screen;
// its debugger, which Debian's build has, is told to continue and not asked again.
func writeBochsConfig(dir string, o Options) error {
	config := fmt.Sprintf(`config_interface: textconfig
display_library: term
romimage: file=%s
vgaromimage: file=%s
cpu: model=corei7_skylake_x, ips=%d, ignore_bad_msrs=1
memory: guest=%d, host=%d
clock: sync=none
boot: cdrom
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=%s, status=inserted
com1: enabled=1, mode=file, dev=%s
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
mouse: enabled=0
log: %s
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
`, bochsFiles[0].path, bochsFiles[1].path, bochsIPS, o.Memory>>20, min(o.Memory, bochsHost)>>20, bochsISO, machineLog(L1), bochsLog)
	return errors.Join(os.WriteFile(filepath.Join(dir, bochsConfig), []byte(config), 0o600),
		os.WriteFile(filepath.Join(dir, "debugger"), []byte("c\n"), 0o600))
}

// waitBochs waits until L1 has told everything, writes memory to a file and ends Bochs.
func waitBochs(ctx context.Context, _ context.CancelCauseFunc, l *Lab, o Options) error {
	ctx, stop := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not up after %v", o.Timeout))
	defer stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := o.told(l)
		if done {
			break
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	l.Machines[0].BootSeconds = time.Since(l.Started).Seconds()
	o.Progress(fmt.Sprintf("L1 has told everything after %.1f s; writing its memory", l.Machines[0].BootSeconds))
	if err := l.keepMemory(o.Memory); err != nil {
		return fmt.Errorf("memory of Bochs: %w", err)
	}
	for i := range l.Machines {
		m := &l.Machines[i]
		if text, err := l.Told(m.Name, "ping"); err == nil {
			m.Release = strings.TrimSpace(text)
		}
	}
	return l.finishBochs(ctx)
}

// told reports whether L1 has said all that a lab waits for.
func (o Options) told(l *Lab) (bool, error) {
	if o.Kind == BochsMonitorKind {
		return o.monitorTold(l)
	}
	return said(l.Machines[0].Log, agent.TellEnd)
}

// keepMemory stops the machine for good and writes its memory to the lab's file.
func (l *Lab) keepMemory(size uint64) error {
	fd, err := l.process().open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0); err != nil {
		return err
	}
	return copyBochsMemory(l.PID, size, l.MemoryFile)
}

// finishBochs ends Bochs. The lab stays, with its memory.
func (l *Lab) finishBochs(ctx context.Context) error {
	if err := l.process().end(ctx, 0); err != nil {
		return err
	}
	l.Running, l.Over = false, true
	return errors.Join(os.Remove(filepath.Join(l.Dir, bochsISO)), l.save())
}

// said reports whether a line of a log is text.
func said(path, text string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 256 {
		f.Seek(-256, io.SeekEnd)
	}
	s := bufio.NewScanner(f)
	for s.Scan() {
		if strings.TrimRight(s.Text(), "\r") == text {
			return true, nil
		}
	}
	return false, nil
}

// Told is what L1 of a lab without channels said that a machine answers to a request.
func (l *Lab) Told(machine, request string) (string, error) {
	text, err := os.ReadFile(l.Machines[0].Log)
	if err != nil {
		return "", err
	}
	all := strings.ReplaceAll(string(text), "\r\n", "\n")
	_, rest, ok := strings.Cut(all, "\n"+agent.Told+machine+": "+request+"\n")
	if !ok {
		return "", fmt.Errorf("%s told nothing of %q: %w", machine, request, ErrNotFound)
	}
	body, _, ok := strings.Cut(rest, "\n"+agent.ToldEnd+"\n")
	if !ok {
		return "", fmt.Errorf("what %s told of %q has no end", machine, request)
	}
	if reason, failed := strings.CutPrefix(body, "error: "); failed {
		return "", fmt.Errorf("%s, asked for %q: %s", machine, request, reason)
	}
	return body + "\n", nil
}

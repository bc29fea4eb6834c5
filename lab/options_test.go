package lab

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want uint64
		text string
	}{
		{"1", 1, "1"}, {"1024", 1024, "1K"}, {"512M", 512 << 20, "512M"}, {"2G", 2 << 30, "2G"},
		{"5g", 5 << 30, "5G"}, {"2048m", 2 << 30, "2G"}, {"1536M", 1536 << 20, "1536M"},
	} {
		got, err := ParseSize(c.in)
		if err != nil || got != c.want || FormatSize(got) != c.text {
			t.Errorf("%s: %d, %v, %s; want %d, %s", c.in, got, err, FormatSize(got), c.want, c.text)
		}
	}
	for _, in := range []string{"", "0", "M", "-1M", "1T", "1MM", "1.5G", "0x10", "18446744073709551615K"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q gave %d", in, got)
		}
	}
}

func TestOptionErrors(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Name: "../x"}, "name"},
		{Options{Name: strings.Repeat("x", 33)}, "name"},
		{Options{VMs: 9}, "at most 8"},
		{Options{VMs: -2}, "at most 8"},
		{Options{Depth: 3, VMs: 5}, "at most 4"},
		{Options{Depth: 3, VMs: 2, Memory: 2 << 30}, "give --memory 2240M"},
		{Options{Depth: 3, VMMemory: 256 << 20}, "a VM with a VM needs 576M"},
		{Options{Depth: 4}, "use 2, or 3"},
		{Options{Depth: 1}, "use 2, or 3"},
		{Options{CPUs: 1000}, "CPUs for L1"},
		{Options{VMCPUs: -1}, "CPUs for each VM"},
		{Options{VMMemory: 1 << 20}, "at least 64M"},
		{Options{VMs: 8}, "give --memory 2496M"},
		{Options{Memory: 2<<30 + 1}, "whole megabytes"},
		{Options{VMAppend: `a="b"`}, "double quotes"},
		{Options{Append: "a\nb"}, "line breaks"},
		{Options{VMAppend: strings.Repeat("x", 2000)}, "at most 2047"},
		{Options{Kind: "windows"}, "there are bochs, bochs-monitor, linux, monitor"},
		{Options{Kind: MonitorKind, VMs: 5}, "1 to 4"},
		{Options{Kind: MonitorKind, VMs: NoVMs}, "1 to 4"},
		{Options{Kind: MonitorKind, CPUs: 17}, "1 to 16"},
		{Options{Kind: MonitorKind, L1Kernel: "k"}, "no kernel"},
		{Options{Kind: MonitorKind, Kernel: "k", VMs: 2}, "1 CPU"},
		{Options{Kind: BochsMonitorKind, Kernel: "k", VMs: 2}, "1 CPU"},
		{Options{Kind: MonitorKind, Memory: 64 << 20}, "needs 512M"},
	} {
		_, err := c.o.withDefaults()
		var option *OptionError
		if !errors.As(err, &option) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

func TestOptionsCommandLine(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "nestdbg lab up"},
		{Options{Depth: 3}, "nestdbg lab up --depth 3"},
		{Options{Kind: MonitorKind, CPUs: 2, Append: "crash=call"}, "nestdbg lab up --kind monitor --cpus 2 --append crash=call"},
		{Options{Kind: MonitorKind, Kernel: DefaultKernel}, "nestdbg lab up --kind monitor --kernel linux-image-cloud-amd64"},
		{Options{VMs: NoVMs, NoGDB: true}, "nestdbg lab up --vms 0 --gdb=false"},
		{Options{Name: "x", VMs: 2, CPUs: 1, VMCPUs: 2, Memory: 5 << 30, VMMemory: 1 << 30, VMAppend: "nokaslr quiet"},
			"nestdbg lab up --name x --vms 2 --cpus 1 --vm-cpus 2 --memory 5G --vm-memory 1G --vm-append 'nokaslr quiet'"},
	} {
		if got := shellQuote(c.o.CommandLine()); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestQEMUCommand(t *testing.T) {
	o, err := Options{Name: "x", Memory: 5 << 30}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	line := o.qemuCommand(files{qemu: "q", kernel: "k", initramfs: "i", memory: "/a,b/mem"})
	for _, want := range []string{
		"nestdbg-lab-x", "memory-backend-file,id=pc.ram,share=on,mem-path=/a,,b/mem,size=5120M",
		"unix:gdb,server=on,wait=off", "virtserialport,chardev=vm7.agent,name=nestdbg.vm7",
	} {
		if !slices.Contains(line, want) {
			t.Errorf("%q lacks %q", line, want)
		}
	}
	o.NoGDB = true
	if slices.Contains(o.qemuCommand(files{}), "-gdb") {
		t.Error("a gdb server that nobody asked for")
	}
}

func TestSocketPathsAreChecked(t *testing.T) {
	if err := checkSockets("/tmp/short"); err != nil {
		t.Error(err)
	}
	if err := checkSockets("/tmp/" + strings.Repeat("x", 100)); err == nil {
		t.Error("a path that fits into no socket address was accepted")
	}
}

// The limits that options are checked against are those of the monitor's source.
func TestMonitorLimits(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"monitor.h", fmt.Sprintf("#define MAX_VMS %d\n", monitorMaxVMs)},
		{"monitor.h", fmt.Sprintf("#define MAX_CPUS %d\n", monitorMaxCPUs)},
		{"boot.S", fmt.Sprintf(".set MAX_CPUS, %d\t", monitorMaxCPUs)},
	} {
		text, err := monitorSource.ReadFile("monitor/" + c.file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), c.want) {
			t.Errorf("%s: no %q", c.file, c.want)
		}
	}
}

func TestMonitorUp(t *testing.T) {
	linux := Options{Kernel: "k"}
	for _, c := range []struct {
		o    Options
		said string
		up   bool
		err  string
	}{
		{Options{}, "monitor: svm\r\n", false, ""},
		{Options{}, "monitor: svm\r\nmonitor: ready\r\ncrash vm0 exit 0x1 rip 0x2\r\n", true, ""},
		{Options{}, "monitor: svm\r\nmonitor: no such thing\r\nmonitor: over\r\n", false, "gave up: monitor: no such thing"},
		{linux, "monitor: ready\r\n", false, ""},
		{linux, "monitor: svm\r\nguest: ready\r\n", true, ""},
		{linux, "monitor: vmx\r\ncrash vm0 exit 0x1f rip 0x2\r\n", false, "run on: vm0 exit 0x1f rip 0x2"},
	} {
		up, err := c.o.monitorUp([]byte(c.said))
		if up != c.up || (err == nil) != (c.err == "") || err != nil && !strings.HasSuffix(err.Error(), c.err) {
			t.Errorf("%q: %v, %v; want %v, %q", c.said, up, err, c.up, c.err)
		}
	}
}

package qemu

import "strings"

// options are QEMU's command-line options in order, names without dashes.
type options []option

type option struct{ name, value string }

// bareOptions are those that take no value (QEMU 7.2 and 10.0 qemu-options.hx,
// without HAS_ARG). All others swallow the next argument, whatever it looks like.
var bareOptions = strings.Fields(`h help version enable-kvm mem-prealloc xen-attach xen-domid-restrict
	no-user-config nodefaults nographic snapshot full-screen no-quit alt-grab ctrl-grab no-frame
	show-cursor portrait win2k-hack no-fd-bootchk no-acpi no-hpet no-reboot no-shutdown usb S s
	singlestep one-insn-per-tb daemonize old-param semihosting only-migratable preconfig enable-fips
	nouserconfig`)

// parseOptions parses the arguments behind the program's name.
func parseOptions(args []string) options {
	var out options
	for i := 0; i < len(args); i++ {
		if len(args[i]) < 2 || args[i][0] != '-' {
			continue // the image of the first disk
		}
		o := option{name: strings.TrimPrefix(args[i][1:], "-")}
		if !isBare(o.name) && i+1 < len(args) {
			i++
			o.value = args[i]
		}
		out = append(out, o)
	}
	return out
}

func isBare(name string) bool {
	for _, b := range bareOptions {
		if name == b {
			return true
		}
	}
	return false
}

// all returns the values of every occurrence of the options.
func (o options) all(names ...string) []string {
	var out []string
	for _, opt := range o {
		for _, n := range names {
			if opt.name == n {
				out = append(out, opt.value)
			}
		}
	}
	return out
}

// parseOpts parses "first,key=value,key2=value2"; the first element without a '='
// is the value of the key named implied. A comma in a value is doubled. A bare
// key is on ("server"), "nokey" is off ("nowait").
//
// Source: QEMU docs/system/invocation.rst and util/qemu-option.c:get_opt_value (7.2).
func parseOpts(s, implied string) map[string]string {
	out := map[string]string{}
	for i, part := range splitCommas(s) {
		key, value, hasValue := strings.Cut(part, "=")
		switch {
		case hasValue && !(i == 0 && strings.ContainsAny(key, "/:")):
			out[key] = value
		case i == 0:
			out[implied] = part
		case strings.HasPrefix(key, "no"):
			out[key[2:]] = "off"
		default:
			out[key] = "on"
		}
	}
	return out
}

func splitCommas(s string) []string {
	var parts []string
	var cur strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != ',' {
			cur.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == ',' {
			cur.WriteByte(',')
			i++
			continue
		}
		parts = append(parts, cur.String())
		cur.Reset()
	}
	return append(parts, cur.String())
}

// on reads a boolean option; what was not given is off.
func on(value string) bool { return value == "on" || value == "yes" || value == "true" }

// chardevs returns the options of every -chardev by id.
func (o options) chardevs() map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, v := range o.all("chardev") {
		c := parseOpts(v, "backend")
		out[c["id"]] = c
	}
	return out
}

// name is the machine's name (-name), or "".
func (o options) machineName() string {
	name := ""
	for _, v := range o.all("name") {
		if n := parseOpts(v, "guest")["guest"]; n != "" {
			name = n
		}
	}
	return name
}

// accel is the accelerator that was asked for; QEMU's default is tcg. query-kvm
// has the last word on kvm, which may be in a list of alternatives.
func (o options) accel() string {
	accel := "tcg"
	for _, opt := range o {
		var v string
		switch opt.name {
		case "accel":
			v = parseOpts(opt.value, "accel")["accel"]
		case "machine", "M":
			v = parseOpts(opt.value, "type")["accel"]
		}
		if v != "" {
			accel = v
		}
	}
	return accel
}

// qmpDevices returns the character devices on which QEMU speaks QMP, each as its
// options: "backend", "path", "host", "port", "fd", ...
func (o options) qmpDevices() []map[string]string {
	chardevs := o.chardevs()
	var out []map[string]string
	add := func(device string) {
		if id, isID := strings.CutPrefix(device, "chardev:"); isID {
			if c := chardevs[id]; c != nil {
				out = append(out, c)
			}
		} else if c := legacyDevice(device); c != nil {
			out = append(out, c)
		}
	}
	for _, v := range o.all("qmp", "qmp-pretty") {
		add(v)
	}
	for _, v := range o.all("mon") {
		m := parseOpts(v, "chardev")
		if m["mode"] == "control" {
			add("chardev:" + m["chardev"])
		}
	}
	return out
}

// stubDevice returns the character device of the last -gdb or -s, the one that
// QEMU opens, as qmpDevices does; nil if there is none.
func (o options) stubDevice() map[string]string {
	var out map[string]string
	for _, opt := range o {
		switch {
		case opt.name == "s":
			out = legacyDevice("tcp::1234")
		case opt.name != "gdb":
		case strings.HasPrefix(opt.value, "chardev:"):
			out = o.chardevs()[strings.TrimPrefix(opt.value, "chardev:")]
		default:
			out = legacyDevice(opt.value)
		}
	}
	return out
}

// legacyDevice turns "unix:PATH,opts" and "tcp:HOST:PORT,opts" into the options
// of the -chardev of the same meaning; nil if it is no socket.
func legacyDevice(device string) map[string]string {
	kind, rest, _ := strings.Cut(device, ":")
	opts := parseOpts(rest, "address")
	addr := opts["address"]
	switch kind {
	case "unix":
		opts["path"] = addr
	case "tcp":
		i := strings.LastIndexByte(addr, ':')
		if i < 0 {
			return nil
		}
		opts["host"], opts["port"] = strings.Trim(addr[:i], "[]"), addr[i+1:]
	default:
		return nil
	}
	opts["backend"] = "socket"
	return opts
}

// endings are what QEMU does when its machine is reset and when it shuts down, as the
// command line asks for it: "reset" or "shutdown", and "poweroff" or "pause". A guest
// that panics and says so (pvpanic) shuts down unless told otherwise.
//
// Source: QEMU 7.2 qemu-options.hx (action, no-reboot, no-shutdown),
// softmmu/runstate-action.c.
func (o options) endings() (reboot, shutdown string) {
	reboot, shutdown = "reset", "poweroff"
	for _, opt := range o {
		switch opt.name {
		case "no-reboot":
			reboot = "shutdown"
		case "no-shutdown":
			shutdown = "pause"
		case "action":
			a := parseOpts(opt.value, "")
			if v := a["reboot"]; v != "" {
				reboot = v
			}
			if v := a["shutdown"]; v != "" {
				shutdown = v
			}
		}
	}
	return reboot, shutdown
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DebugKernel provides the debug symbols of a kernel package and returns the
// directory with them: boot/vmlinux-RELEASE and, with the same layout as in
// lib/modules, the modules that the lab loads. pkg is the kernel's package, with or
// without "-dbg", and may end in "=VERSION"; suite is Debian's, or empty for what
// this machine's apt knows. Of the package, several hundred megabytes, only what is
// used stays in the cache.
func DebugKernel(ctx context.Context, cacheDir, pkg, suite string, progress func(string)) (string, error) {
	dir, err := cacheHome(cacheDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	c := cache{dir}
	name, version, hasVersion := strings.Cut(pkg, "=")
	name = strings.TrimSuffix(name, "-dbg") + "-dbg"
	if !hasVersion {
		a, err := openSuite(ctx, c, suite, progress)
		if err != nil {
			return "", err
		}
		files, err := a.downloadNames(ctx, []string{name})
		if err != nil {
			return "", err
		}
		version = files[0].Version
	}
	const tree = "usr/lib/debug"
	root, err := c.make(filepath.Join(symbolsCache, name+"_"+version), func(dir string) error {
		a, err := openSuite(ctx, c, suite, progress)
		if err != nil {
			return err
		}
		files, err := a.downloadNames(ctx, []string{name + "=" + version})
		if err != nil {
			return fmt.Errorf("debug symbols %s %s: %w", name, version, err)
		}
		debs, err := a.download(ctx, c, files, progress)
		if err != nil {
			return err
		}
		progress("unpacking " + files[0].File)
		return errors.Join(extractDeb(ctx, debs[0], dir, wantSymbols), os.Remove(debs[0]))
	})
	if err != nil {
		return "", err
	}
	found := filepath.Join(root, tree)
	images, _ := filepath.Glob(filepath.Join(found, "boot/vmlinux-*"))
	if len(images) == 0 {
		return "", fmt.Errorf("package %s %s holds no vmlinux", name, version)
	}
	_, err = os.Stat(images[0]) // it may be a link, and the file elsewhere
	return found, err
}

// symbolsCache is the part of the cache with debug symbols. It gets another name
// when wantSymbols picks more than it did.
const symbolsCache = "symbols-3"

// wantSymbols picks the kernel and the modules that the lab's machines load. The kernel
// is in boot, and since 7.x beside the modules with a link in boot.
func wantSymbols(name string) bool {
	rest, ok := strings.CutPrefix(name, "usr/lib/debug/")
	if !ok {
		return false
	}
	rest = strings.TrimPrefix(rest, "usr/")
	if strings.HasPrefix(rest, "boot/vmlinux-") {
		return true
	}
	_, place, _ := strings.Cut(strings.TrimPrefix(rest, "lib/modules/"), "/") // behind the release
	if place == "vmlinux" {
		return true
	}
	inTree, ok := strings.CutPrefix(place, "kernel/")
	module, isModule := moduleName(inTree)
	ofKVM := strings.HasPrefix(inTree, "arch/x86/kvm/") || strings.HasPrefix(inTree, "virt/")
	return ok && isModule && (ofKVM || strings.HasPrefix(module, "virtio") || slices.Contains(extraModules, strings.ReplaceAll(module, "_", "-")))
}

// SymbolsDir provides the debug symbols of the kernel that a machine was
// started with: see DebugKernel.
func (l *Lab) SymbolsDir(ctx context.Context, machine, cacheDir string, progress func(string)) (string, error) {
	m := l.Machine(machine)
	if m == nil {
		return "", fmt.Errorf("lab %s: machine %s: %w", l.Name, machine, ErrNotFound)
	}
	if m.Kernel.Package == "" {
		return "", fmt.Errorf("kernel %s of %s was given as a file: where its symbols are is not known",
			m.Kernel.Release, machine)
	}
	return DebugKernel(ctx, cacheDir, m.Kernel.Package+"="+m.Kernel.Version, m.Kernel.Suite, progress)
}

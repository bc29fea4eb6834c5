package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Programs provides programs of another suite of Debian, such as a newer QEMU and
// gdb, without installing them: they are unpacked in the cache with every library
// that they need, the C library included, and told where these are. It returns a
// directory with the programs and nothing else, for PATH.
func Programs(ctx context.Context, cacheDir, suite string, programs []Program, progress func(string)) (string, error) {
	dir, err := cacheHome(cacheDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	c := cache{dir}
	name := suite
	for _, p := range programs {
		name += "+" + p.Name
	}
	// What was unpacked once stays what it was: nothing on this machine asks for
	// newer ones.
	root, err := c.make(filepath.Join("programs", name), func(dir string) error {
		a, err := openSuite(ctx, c, suite, progress)
		if err != nil {
			return err
		}
		return a.unpackPrograms(ctx, dir, c.path("programs", name), programs, progress)
	})
	return filepath.Join(root, programsDir), err
}

// Program is a program of a Debian package.
type Program struct {
	Package string
	Name    string // in usr/bin of the package
}

const (
	// programsDir is where in an unpacked tree the programs are that were asked for.
	programsDir = "bin"
	// debianLibraries is where Debian on x86-64 has libraries.
	debianLibraries = "usr/lib/x86_64-linux-gnu"
	// closureLimit bounds how many packages programs may need.
	closureLimit = 400
)

// unpackPrograms fills dir, which will be found as target later.
func (a archive) unpackPrograms(ctx context.Context, dir, target string, programs []Program, progress func(string)) error {
	debs := filepath.Join(dir, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return err
	}
	names := make([]string, len(programs))
	for i, p := range programs {
		names[i] = p.Package
	}
	progress(fmt.Sprintf("downloading %s of Debian %s", strings.Join(names, ", "), a.suite))
	if err := a.downloadClosure(ctx, debs, names); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range files {
		if err := extractDeb(ctx, deb, dir, neededToRun); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(debs), os.Mkdir(filepath.Join(dir, programsDir), 0o755)); err != nil {
		return err
	}
	for _, p := range programs {
		// With the name it would run as, for which it is looked for in /proc.
		path := filepath.Join(dir, "usr/bin", p.Name)
		if _, err := output(ctx, "patchelf",
			"--set-interpreter", filepath.Join(target, debianLibraries, "ld-linux-x86-64.so.2"),
			// DT_RPATH, unlike DT_RUNPATH, holds for libraries of libraries too.
			"--force-rpath", "--set-rpath", filepath.Join(target, debianLibraries), path); err != nil {
			return fmt.Errorf("%s of Debian %s: %w", p.Name, a.suite, err)
		}
		if err := os.Symlink(filepath.Join("../usr/bin", p.Name), filepath.Join(dir, programsDir, p.Name)); err != nil {
			return err
		}
	}
	return nil
}

// neededToRun picks what programs read when they run.
func neededToRun(name string) bool {
	for _, dir := range []string{"usr/bin/", "usr/lib/", "usr/lib64/", "usr/share/gdb/", "usr/share/qemu/", "usr/share/seabios/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

// downloadClosure gets packages and all that they depend on, whatever this machine
// has, into dir.
func (a archive) downloadClosure(ctx context.Context, dir string, packages []string) error {
	nothing := filepath.Join(dir, "status") // what is installed: nothing
	if err := os.WriteFile(nothing, nil, 0o644); err != nil {
		return err
	}
	out, err := a.output(ctx, dir, "apt-get", append([]string{"-qq", "install", "--print-uris", "--no-install-recommends",
		"-o", "Dir::State::status=" + nothing}, packages...)...)
	if err != nil {
		return err
	}
	files := parseURIs(out)
	if len(files) == 0 || len(files) > closureLimit {
		return fmt.Errorf("%s need %d packages", strings.Join(packages, ", "), len(files))
	}
	args := []string{"-qq", "download"}
	for _, f := range files {
		args = append(args, f.Package+"="+f.Version)
	}
	_, err = a.output(ctx, dir, "apt-get", args...)
	return err
}

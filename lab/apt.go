package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// debName is a package file that apt can download.
type debName struct {
	Package, Version string
	File             string // base name
	Size             int64  // bytes
}

// parseDebName reads NAME_VERSION or NAME_VERSION_ARCH.deb. In file names
// apt writes the colon of an epoch as %3a.
func parseDebName(file string) debName {
	f := strings.SplitN(strings.TrimSuffix(file, ".deb"), "_", 3)
	if len(f) < 2 {
		return debName{Package: file, File: file}
	}
	version, err := url.PathUnescape(f[1])
	if err != nil {
		version = f[1]
	}
	return debName{Package: f[0], Version: version, File: file}
}

// kernelPart matches the packages that make up a kernel. Since 7.x Debian
// splits the image into linux-image, linux-binary, linux-modules and linux-base.
var kernelPart = regexp.MustCompile(`^linux-(image|binary|modules|base)-`)

// partsLimit bounds how many packages one kernel may consist of.
const partsLimit = 8

// kernelParts follows the dependencies of a kernel package, itself included.
func (a archive) kernelParts(ctx context.Context, name string) ([]string, error) {
	parts := []string{name}
	for i := 0; i < len(parts); i++ {
		if len(parts) > partsLimit {
			return nil, fmt.Errorf("package %s depends on more than %d kernel packages", name, partsLimit)
		}
		out, err := a.output(ctx, "", "apt-cache", "depends", "--important", parts[i])
		if i == 0 && err != nil && ctx.Err() == nil && !errors.Is(err, exec.ErrNotFound) {
			return nil, optionf("kernel %s: no such file, and no package: %w", name, err)
		}
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", name, err)
		}
		for _, dep := range parseDepends(out) {
			if !contains(parts, dep) {
				parts = append(parts, dep)
			}
		}
	}
	return parts, nil
}

// parseDepends finds kernel packages in the output of apt-cache depends.
func parseDepends(out []byte) []string {
	var deps []string
	for line := range strings.Lines(string(out)) {
		dep, ok := strings.CutPrefix(strings.TrimLeft(line, " |"), "Depends: ")
		if dep = strings.TrimSpace(dep); ok && kernelPart.MatchString(dep) {
			deps = append(deps, dep)
		}
	}
	return deps
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// downloadNames asks apt which files it would download; no network is used.
func (a archive) downloadNames(ctx context.Context, packages []string) ([]debName, error) {
	args := append([]string{"-qq", "download", "--print-uris"}, packages...)
	out, err := a.output(ctx, "", "apt-get", args...)
	if err != nil {
		return nil, err
	}
	files := parseURIs(out)
	if len(files) != len(packages) {
		return nil, fmt.Errorf("apt-get knows %d of the packages %s: apt-get update",
			len(files), strings.Join(packages, " "))
	}
	return files, nil
}

// parseURIs reads lines "'URL' FILE SIZE HASH".
func parseURIs(out []byte) []debName {
	var files []debName
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 3 || filepath.Base(f[1]) != f[1] {
			continue
		}
		d := parseDebName(f[1])
		d.Size, _ = strconv.ParseInt(f[2], 10, 64)
		files = append(files, d)
	}
	return files
}

// versioned matches the packages that hold one particular kernel; those like
// linux-image-cloud-amd64 only depend on one.
var versioned = regexp.MustCompile(`^linux-image-[0-9]`)

// ofOneKernel matches the packages that a particular kernel consists of.
var ofOneKernel = regexp.MustCompile(`^linux-(image|binary|modules|base)-[0-9]`)

// withFiles leaves out the packages that only depend on a kernel: nothing is in
// them, and an archive may have them no more.
func withFiles(parts []string) []string {
	var out []string
	for _, p := range parts {
		if ofOneKernel.MatchString(p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return parts
	}
	return out
}

// mainPart is the package that names the kernel.
func mainPart(files []debName) debName {
	for _, f := range files {
		if versioned.MatchString(f.Package) {
			return f
		}
	}
	return files[0]
}

// download gets files into the cache and returns their paths.
func (a archive) download(ctx context.Context, c cache, files []debName, progress func(string)) ([]string, error) {
	var paths []string
	for _, f := range files {
		path := c.path("debs", f.File)
		paths = append(paths, path)
		if st, err := os.Stat(path); err == nil && st.Size() == f.Size {
			continue
		}
		progress(fmt.Sprintf("downloading %s (%.1f MB)", f.File, float64(f.Size)/1e6))
		if err := c.into(path, func(dir string) (string, error) {
			_, err := a.output(ctx, dir, "apt-get", "-qq", "download", f.Package+"="+f.Version)
			return filepath.Join(dir, f.File), err
		}); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// output runs a program and returns what it wrote.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	return run(exec.CommandContext(ctx, name, args...))
}

// run runs cmd; its error holds the last thing that cmd complained about.
func run(cmd *exec.Cmd) ([]byte, error) {
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	lines := strings.Split(strings.TrimSpace(complaint.String()), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return nil, fmt.Errorf("%s: %s", filepath.Base(cmd.Path), last)
	}
	return nil, fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
}

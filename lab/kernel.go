package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Kernel is a kernel to boot, with its modules.
type Kernel struct {
	// Package and Version are Debian's; empty for a kernel given as a file.
	Package string `json:"package,omitempty"`
	Version string `json:"version,omitempty"`
	Suite   string `json:"suite,omitempty"` // of Debian, if not this machine's
	Release string `json:"release"`         // as in uname -r
	Image   string `json:"image"`           // path of the vmlinuz
	Modules string `json:"modules"`         // directory lib/modules/RELEASE
}

// packageName is what Debian allows, Policy Manual 5.6.1.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// findKernel turns what the person gave into files, by way of the cache:
// a package name, perhaps with a suite, .deb files with commas between them, or a
// vmlinuz.
func findKernel(ctx context.Context, c cache, spec, modules string,
	progress func(string)) (*Kernel, error) {
	if strings.HasSuffix(spec, ".deb") {
		return kernelFromDebs(ctx, c, strings.Split(spec, ","), progress)
	}
	if _, err := os.Stat(spec); err == nil {
		return kernelFromImage(spec, modules)
	}
	name, suite := splitSuite(spec)
	if !packageName.MatchString(name) || strings.Contains(spec, "/") && !validName.MatchString(suite) {
		return nil, optionf("kernel %s: no such file", spec)
	}
	return kernelFromPackage(ctx, c, name, suite, progress)
}

// kernelFromImage takes a vmlinuz with its modules somewhere around it.
func kernelFromImage(image, modules string) (*Kernel, error) {
	release, err := imageRelease(image)
	if err != nil {
		return nil, err
	}
	image, err = filepath.Abs(image)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(image)
	for _, m := range []string{
		modules, filepath.Join(modules, "lib/modules", release), dir,
		filepath.Join(dir, "lib/modules", release), filepath.Join(dir, "../lib/modules", release),
		filepath.Join(dir, "../usr/lib/modules", release),
		filepath.Join(dir, "modules"), filepath.Join("/lib/modules", release),
	} {
		if _, err := os.Stat(filepath.Join(m, "kernel")); err == nil {
			return &Kernel{Release: release, Image: image, Modules: m}, nil
		}
	}
	return nil, optionf("kernel %s: no modules beside it: "+
		"give the directory lib/modules/%s with --modules or --l1-modules", image, release)
}

// imagePlaces are where packages put their kernel; the second since 7.x.
var imagePlaces = []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"}

// kernelFromTree finds the kernel in an unpacked package.
func kernelFromTree(root string) (*Kernel, error) {
	var images []string
	for _, place := range imagePlaces {
		found, err := filepath.Glob(filepath.Join(root, place))
		if err != nil {
			return nil, err
		}
		images = append(images, found...)
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%s holds %d kernels, not one", root, len(images))
	}
	return kernelFromImage(images[0], "")
}

// imageRelease reads the release out of a bzImage (Linux document "The
// Linux/x86 Boot Protocol", fields header and kernel_version).
func imageRelease(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [0x210]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[0x202:0x206]) != "HdrS" {
		return "", fmt.Errorf("%s is no x86 bzImage (a vmlinuz): a vmlinux cannot be booted", path)
	}
	var text [256]byte
	offset := int64(binary.LittleEndian.Uint16(head[0x20e:])) + 0x200
	n, _ := f.ReadAt(text[:], offset)
	release, _, ok := strings.Cut(string(text[:n]), " ")
	if !ok || release == "" || strings.ContainsAny(release, "/\x00\n") {
		return "", fmt.Errorf("%s does not say which release it is", path)
	}
	return release, nil
}

// kernelFromDebs unpacks package files into the cache.
func kernelFromDebs(ctx context.Context, c cache, debs []string, progress func(string)) (*Kernel, error) {
	key, err := hashFiles(debs)
	if err != nil {
		return nil, &OptionError{err}
	}
	root, err := c.make(filepath.Join("kernels", key[:16]), func(dir string) error {
		progress("unpacking " + strings.Join(debs, ", "))
		return unpackKernel(ctx, debs, dir)
	})
	if err != nil {
		return nil, err
	}
	k, err := kernelFromTree(root)
	if err != nil {
		return nil, err
	}
	var names []debName
	for _, deb := range debs {
		names = append(names, parseDebName(filepath.Base(deb)))
	}
	k.Package, k.Version = mainPart(names).Package, mainPart(names).Version
	return k, nil
}

// kernelFromPackage downloads and unpacks a package and what it is made of.
func kernelFromPackage(ctx context.Context, c cache, name, suite string, progress func(string)) (*Kernel, error) {
	root, err := resolve(ctx, c, name, suite, progress)
	if err != nil {
		return nil, err
	}
	k, err := kernelFromTree(root)
	if err != nil {
		return nil, err
	}
	found := parseDebName(filepath.Base(root))
	k.Package, k.Version, k.Suite = found.Package, found.Version, suite
	return k, nil
}

// aptLists changes whenever apt learns of new packages. Asking apt costs it
// seconds, so what a name means is remembered for as long as this is unchanged.
const aptLists = "/var/lib/apt/lists"

// resolve returns the directory of the unpacked package. Without a network it
// takes what the same name meant the last time. The kernel of another suite stays
// what it was: nothing on this machine asks for a newer one.
func resolve(ctx context.Context, c cache, name, suite string, progress func(string)) (string, error) {
	memo := c.path("resolved", name)
	if suite != "" {
		memo += "@" + suite
	}
	last := ""
	if text, err := os.ReadFile(memo); err == nil {
		if _, err := os.Stat(c.path(string(text))); err == nil {
			last = string(text)
		}
	}
	if suite == "" && os.Getenv("APT_CONFIG") != "" {
		// Another configuration of apt may mean something else by the name.
		found, err := unpackPackage(ctx, c, name, suite, progress)
		return c.path(found), err
	}
	if last != "" && (suite != "" || newer(memo, aptLists)) {
		return c.path(last), nil
	}
	found, err := unpackPackage(ctx, c, name, suite, progress)
	if err == nil {
		return c.path(found), writeFile(memo, []byte(found))
	}
	if last == "" || ctx.Err() != nil {
		return "", err
	}
	progress(fmt.Sprintf("%v; using %s as before", err, filepath.Base(last)))
	return c.path(last), nil
}

// newer reports whether a was changed after b; a b that is not there is old.
func newer(a, b string) bool {
	stA, errA := os.Stat(a)
	stB, errB := os.Stat(b)
	return errA == nil && (errB != nil || stA.ModTime().After(stB.ModTime()))
}

// unpackPackage returns the directory in the cache, relative to it, with the
// unpacked package, made if need be.
func unpackPackage(ctx context.Context, c cache, name, suite string, progress func(string)) (string, error) {
	a, err := openSuite(ctx, c, suite, progress)
	if err != nil {
		return "", err
	}
	parts, err := a.kernelParts(ctx, name)
	if err != nil {
		return "", err
	}
	files, err := a.downloadNames(ctx, withFiles(parts))
	if err != nil {
		return "", err
	}
	image := mainPart(files)
	dir := filepath.Join("kernels", image.Package+"_"+image.Version)
	_, err = c.make(dir, func(dir string) error {
		debs, err := a.download(ctx, c, files, progress)
		if err != nil {
			return err
		}
		progress("unpacking " + image.Package + " " + image.Version)
		return unpackKernel(ctx, debs, dir)
	})
	return dir, err
}

// unpackKernel unpacks what a boot needs: kernels and modules.
func unpackKernel(ctx context.Context, debs []string, dir string) error {
	for _, deb := range debs {
		err := extractDeb(ctx, deb, dir, func(name string) bool {
			return strings.HasPrefix(name, "boot/") || strings.HasPrefix(name, "lib/modules/") ||
				strings.HasPrefix(name, "usr/lib/modules/")
		})
		if err != nil {
			return err
		}
	}
	_, err := kernelFromTree(dir) // what cannot be used must not be kept
	return err
}

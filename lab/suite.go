package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// archive is where packages come from: a suite of Debian, or for the zero value
// what apt on this machine knows.
type archive struct {
	suite  string // such as "trixie"; empty for this machine's own
	config string // apt's configuration file, for APT_CONFIG
}

// splitSuite takes the suite from "PACKAGE/SUITE", as apt-get writes it.
func splitSuite(spec string) (name, suite string) {
	name, suite, _ = strings.Cut(spec, "/")
	return name, suite
}

// output runs one of apt's programs on the archive's lists.
func (a archive) output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if a.config != "" {
		cmd.Env = append(os.Environ(), "APT_CONFIG="+a.config)
	}
	return run(cmd)
}

// listsAge is how old the lists of a suite may become before they are fetched again.
const listsAge = 24 * time.Hour

// openSuite provides the lists of packages of a suite, in the cache: this machine's
// apt, its sources and what it has installed are left alone. The servers are those
// that this machine's apt has Debian from.
func openSuite(ctx context.Context, c cache, suite string, progress func(string)) (archive, error) {
	if suite == "" {
		return archive{}, nil
	}
	if !validName.MatchString(suite) {
		return archive{}, fmt.Errorf("%q is no suite of Debian", suite)
	}
	root := c.path("apt", suite)
	a := archive{suite: suite, config: filepath.Join(root, "apt.conf")}
	done := filepath.Join(root, "updated")
	if st, err := os.Stat(done); err == nil && time.Since(st.ModTime()) < listsAge {
		return a, nil
	}
	sources, err := suiteSources(ctx, suite)
	if err != nil {
		return archive{}, err
	}
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return archive{}, err
		}
	}
	if err := writeFile(a.config, []byte(suiteConfig(root))); err != nil {
		return archive{}, err
	}
	progress("reading what packages Debian " + suite + " has")
	// Not every suite has security updates of its own.
	for n := len(sources); n > 0; n-- {
		if err := writeFile(filepath.Join(root, "sources.list"), []byte(strings.Join(sources[:n], ""))); err != nil {
			return archive{}, err
		}
		if _, err = a.output(ctx, root, "apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update"); err == nil {
			return a, writeFile(done, nil)
		}
	}
	return archive{}, fmt.Errorf("packages of Debian %s: %w", suite, err)
}

// debianKeyring has the keys of all suites.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// suiteConfig makes apt keep everything that it reads and writes under root.
func suiteConfig(root string) string {
	return fmt.Sprintf(`Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "%[1]s/lists";
Dir::Cache "%[1]s/cache";
APT::Sandbox::User "";
`, root)
}

// suiteSources are the lines of a sources.list for a suite: its main archive, then
// its security updates.
func suiteSources(ctx context.Context, suite string) ([]string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)",
		"Created-By: Packages", "Component: main")
	if err != nil {
		return nil, err
	}
	lines := parseSources(string(out), suite)
	if len(lines) == 0 {
		return nil, fmt.Errorf("apt on this machine knows no archive of Debian: apt-get update")
	}
	return lines, nil
}

// parseSources turns lines "LABEL|URI" into sources of a suite, each once.
func parseSources(out, suite string) []string {
	var lines []string
	for _, kind := range []struct{ label, suite string }{{"Debian", suite}, {"Debian-Security", suite + "-security"}} {
		for line := range strings.Lines(out) {
			label, uri, _ := strings.Cut(strings.TrimSpace(line), "|")
			source := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", debianKeyring, uri, kind.suite)
			if label == kind.label && uri != "" && !slices.Contains(lines, source) {
				lines = append(lines, source)
			}
		}
	}
	return lines
}

package tidy

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"
)

// blobLimit is the largest file that belongs into git, in bytes. What is larger
// is made by a recipe.
const blobLimit = 256 << 10

func checkBlob(f *file) []string {
	if len(f.text) > blobLimit {
		return []string{fmt.Sprintf("%d bytes, at most %d belong into git", len(f.text), blobLimit)}
	}
	return nil
}

func TestBlobs(t *testing.T) { each(t, anyFile, checkBlob) }

func TestBlobsFires(t *testing.T) {
	fires(t, checkBlob, []sample{
		{"at the limit", "a.bin", strings.Repeat("x", blobLimit), ""},
		{"above", "a.bin", strings.Repeat("x", blobLimit+1), "belong into git"},
	})
}

// openEnds matches words for work that was put off. They are written in two
// parts so that this file does not match.
var openEnds = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)

// privatePaths matches paths of one person's machine. The home of somebody
// called user is an example.
var privatePaths = regexp.MustCompile(`(?:^|[^A-Za-z0-9_.~-])(/(?:work|root|home)/[A-Za-z0-9_.-]*)`)

// checkText looks for both, line by line.
func checkText(f *file) (problems []string) {
	number := 0
	for line := range strings.Lines(string(f.text)) {
		number++
		if word := openEnds.FindString(line); word != "" {
			problems = append(problems, fmt.Sprintf("line %d: %s: do it, or write an issue", number, word))
		}
		if m := privatePaths.FindStringSubmatch(line); m != nil && m[1] != "/home/user" {
			problems = append(problems, fmt.Sprintf("line %d: path of somebody's machine: %s", number, m[1]))
		}
	}
	return problems
}

// text is what people write. Corpora and packed captures are bytes of machines;
// the samples of this file are wrong on purpose.
func text(f *file) bool {
	return path.Ext(f.path) != ".gz" && !strings.Contains(f.path, "testdata/fuzz/") &&
		f.path != "internal/tidy/text_test.go"
}

func TestText(t *testing.T) { each(t, text, checkText) }

func TestTextFires(t *testing.T) {
	fires(t, checkText, []sample{
		{"put off", "a.go", "package a\n// TO" + "DO: all of it\n", "line 2"},
		{"template", "a.sh", "mktemp -d /tmp/x.XXXXXX\n", ""},
		{"inside a word", "a.md", "METODO, FIXMENT\n", ""},
		{"home", "a.md", "see /home/me/notes\n", "/home/me"},
		{"example", "a.go", "package a\n// as in /home/user/x\n", ""},
		{"root", "a.sh", "cp x '/root/y'\n", "/root/y"},
		{"address", "a.md", "https://example.org/home/page and lib/work/x\n", ""},
	})
}

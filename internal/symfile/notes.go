package symfile

import "fmt"

// notes collects problems, one per kind, so that a hostile input costs a counter
// and not a list.
type notes struct {
	problems []Problem
	byKind   map[string]int // index in problems
}

// add counts a problem. kind is a format string and names the kind; the text of
// the first problem of a kind is kept.
func (n *notes) add(kind string, args ...any) {
	if i, ok := n.byKind[kind]; ok {
		n.problems[i].Count++
		return
	}
	if n.byKind == nil {
		n.byKind = make(map[string]int)
	}
	n.byKind[kind] = len(n.problems)
	n.problems = append(n.problems, Problem{Text: fmt.Sprintf(kind, args...), Count: 1})
}

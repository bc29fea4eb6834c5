package cexpr

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// nearCount is how many near names are offered.
const nearCount = 4

// Near returns the names that a person may have meant, the nearest first: those
// that a few wrong letters lead to, or that begin with the name. The measure is ours.
func Near(name string, names iter.Seq[string]) []string {
	type candidate struct {
		name     string
		distance int
	}
	var best []candidate
	limit := min(1+len(name)/4, 4)
	for other := range names {
		d := limit + 1
		switch {
		case strings.EqualFold(name, other):
			d = 0
		case abs(len(other)-len(name)) <= limit:
			d = distance(name, other, limit)
		}
		if d > limit && len(name) >= 3 && strings.HasPrefix(other, name) && len(other) <= 2*len(name) {
			d = limit
		}
		if d > limit || slices.ContainsFunc(best, func(c candidate) bool { return c.name == other }) {
			continue
		}
		best = append(best, candidate{other, d})
		slices.SortFunc(best, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name))
		})
		best = best[:min(len(best), nearCount)]
	}
	var out []string
	for _, c := range best {
		out = append(out, c.name)
	}
	return out
}

func abs(n int) int { return max(n, -n) }

// distance is how many letters have to be put in, taken out or changed to make b
// of a; more than limit is limit+1.
func distance(a, b string, limit int) int {
	if len(a) > maxName || len(b) > maxName {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal, least := row[0], i+1
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
			least = min(least, row[j+1])
		}
		if least > limit {
			return limit + 1
		}
	}
	return row[len(b)]
}

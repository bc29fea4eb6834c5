package mem

// Subtract returns what of a is not in b. Both ascend and do not overlap in themselves.
func Subtract(a, b []Range) []Range {
	var out []Range
	for _, r := range a {
		for len(b) > 0 && b[0].Last < r.First {
			b = b[1:]
		}
		rest := true
		for _, x := range b {
			if x.First > r.Last {
				break
			}
			if x.First > r.First {
				out = append(out, Range{r.First, x.First - 1})
			}
			if rest = x.Last < r.Last; !rest {
				break
			}
			r.First = x.Last + 1
		}
		if rest {
			out = append(out, r)
		}
	}
	return out
}

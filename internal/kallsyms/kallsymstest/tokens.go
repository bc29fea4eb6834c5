package kallsymstest

import "sort"

// The kernel's build replaces the most frequent pairs again and again. One round
// is enough to have long tokens, tokens in place of unused characters and names
// whose packed form differs from their text.

// used tells which characters the names need as themselves. Digits always are.
func (b *builder) used() (used [256]bool) {
	for c := '0'; c <= '9'; c++ {
		used[c] = true
	}
	for _, s := range b.symbols {
		used[s.Type] = true
		for i := range len(s.Name) {
			used[s.Name[i]] = true
		}
	}
	return used
}

// pairs gives the free token numbers to the most frequent pairs of characters.
func (b *builder) pairs() map[string]byte {
	count := map[string]int{}
	for _, s := range b.symbols {
		text := string(s.Type) + s.Name
		for i := range len(text) - 1 {
			count[text[i:i+2]]++
		}
	}
	best := make([]string, 0, len(count))
	for p := range count {
		best = append(best, p)
	}
	sort.Slice(best, func(i, j int) bool {
		if count[best[i]] != count[best[j]] {
			return count[best[i]] > count[best[j]]
		}
		return best[i] < best[j]
	})
	out := map[string]byte{}
	for c, used := range b.used() {
		if !used && len(best) > 0 {
			out[best[0]] = byte(c)
			best = best[1:]
		}
	}
	return out
}

// tokenStrings is the token table.
func (b *builder) tokenStrings() (table [256]string) {
	for c, used := range b.used() {
		if used {
			table[c] = string(rune(c))
		}
	}
	for p, c := range b.pairs() {
		table[c] = p
	}
	return table
}

// pack replaces pairs from the left.
func pack(text string, pairs map[string]byte) []byte {
	var out []byte
	for i := 0; i < len(text); i++ {
		if i+2 <= len(text) {
			if c, ok := pairs[text[i:i+2]]; ok {
				out = append(out, c)
				i++
				continue
			}
		}
		out = append(out, text[i])
	}
	return out
}

// Symbols makes a plausible list of count symbols of a kernel at base: per-CPU
// symbols at small addresses if percpu, then _text, functions that share names
// and addresses, one long name, data.
func Symbols(count int, base uint64, percpu bool) []Symbol {
	words := []string{"init", "read", "write", "lock", "queue", "net", "vm", "page", "_do", "sys"}
	var out []Symbol
	if percpu {
		out = append(out, Symbol{"__per_cpu_start", 0, 'A'}, Symbol{"current_task", 0x40, 'A'},
			Symbol{"cpu_number", 0x1c00, 'A'}, Symbol{"__per_cpu_end", 0x34000, 'A'})
	}
	out = append(out, Symbol{"_stext", base, 'T'}, Symbol{"_text", base, 'T'})
	long := ""
	for len(long) < 400 {
		long += words[len(long)%len(words)] + "Q7Z"
	}
	out = append(out, Symbol{long, base + 0x10, 't'})
	x, addr := uint32(1), base+0x40
	for len(out) < count-1 {
		x = x*1664525 + 1013904223
		name := words[x>>28%10] + "_" + words[x>>20&7] + "_" + words[x>>12&7]
		if x>>8&3 == 0 {
			name += "." + string(rune('0'+x>>4&7))
		}
		out = append(out, Symbol{name, addr, "tTdDbrW"[x>>16%7]})
		addr += uint64(x >> 24 & 0xf0)
	}
	return append(out, Symbol{"_end", addr + 0x1000, 'B'})
}

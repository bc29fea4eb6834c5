package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Bochs hands out memory in blocks as they are first touched, from one anonymous mapping,
// and has an array with the address of each, zero for those never touched (Bochs 2.7
// memory/memory.h, BX_MEM_BLOCK_LEN; misc_mem.cc, BX_MEM_C::init_memory,
// allocate_block). The array is found by what it must be.
const bochsBlock = 128 << 10

// mapping is a line of /proc/PID/maps that can be written.
type mapping struct{ first, end uint64 }

// copyBochsMemory writes the memory of the machine in the stopped process pid to a file of
// size bytes; blocks never touched are left as holes.
func copyBochsMemory(pid int, size uint64, path string) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer memory.Close()
	blocks, err := findBlocks(memory, writable(string(maps)), int(size/bochsBlock))
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, bochsBlock)
	for k, at := range blocks {
		if at == 0 {
			continue
		}
		if _, err := memory.ReadAt(buf, int64(at)); err != nil {
			return errors.Join(fmt.Errorf("block %d at %#x: %w", k, at, err), out.Close())
		}
		if _, err := out.WriteAt(buf, int64(k)*bochsBlock); err != nil {
			return errors.Join(err, out.Close())
		}
	}
	return out.Close()
}

// writable are the private mappings that can be read and written.
func writable(maps string) []mapping {
	var out []mapping
	for line := range strings.Lines(maps) {
		var m mapping
		var access string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &m.first, &m.end, &access); n == 3 && strings.HasPrefix(access, "rw-p") {
			out = append(out, m)
		}
	}
	return out
}

// findBlocks finds the array of count blocks. It must be the only one.
func findBlocks(memory io.ReaderAt, maps []mapping, count int) ([]uint64, error) {
	var found []uint64
	for _, ram := range maps {
		least := min(uint64(count)*bochsBlock, bochsHost)
		if ram.end-ram.first < least {
			continue // the mapping that blocks are in is at least as large as Bochs was allowed
		}
		for _, m := range maps {
			if m == ram {
				// A large array has a mapping of its own, which Linux joins with this one: below
				// the blocks, since mappings are made downwards.
				m.end -= least
			}
			if m.end-m.first < uint64(count)*8 {
				continue
			}
			// What is not there any more while the process stands still is not it.
			text := make([]byte, m.end-m.first)
			if _, err := memory.ReadAt(text, int64(m.first)); err != nil {
				continue
			}
			for o := 8; o+8*count <= len(text); o += 8 {
				if !chunkOf(binary.LittleEndian.Uint64(text[o-8:]), count) {
					continue
				}
				if blocks := blocksAt(text[o:], ram, count); blocks != nil {
					if found != nil {
						return nil, errors.New("two arrays of memory blocks")
					}
					found = blocks
					o += 8 * (count - 1)
				}
			}
		}
	}
	if found == nil {
		return nil, errors.New("no array of memory blocks: another version of Bochs?")
	}
	return found, nil
}

// chunkOf reports whether a word can be the size that the C library keeps before an
// array of count addresses: with its own words, and flags in the lowest 3 bits. A part
// of the array has another address before it. With the flag IS_MMAPPED, from 128 KiB on,
// it is a number of pages (glibc 2.36 malloc/malloc.c:sysmalloc_mmap).
func chunkOf(word uint64, count int) bool {
	const mapped, page = 2, 4096
	size, least := word&^7, uint64(8*count+8)
	if word&mapped != 0 {
		return size%page == 0 && size >= least && size < least+page+8
	}
	return size >= least && size <= least+56
}

// blocksAt reads the array that text begins with, nil if it is none: block 0 is there, all
// blocks are in ram, one block apart or several, and no two are the same.
func blocksAt(text []byte, ram mapping, count int) []uint64 {
	first := binary.LittleEndian.Uint64(text)
	if first < ram.first || first > ram.end-bochsBlock {
		return nil
	}
	blocks := make([]uint64, 0, count)
	seen := make(map[uint64]bool)
	for i := range count {
		at := binary.LittleEndian.Uint64(text[8*i:])
		if at == 0 {
			blocks = append(blocks, 0)
			continue
		}
		if at < ram.first || at > ram.end-bochsBlock || (at-first)%bochsBlock != 0 || seen[at] {
			return nil
		}
		seen[at] = true
		blocks = append(blocks, at)
	}
	const least = 16 // the kernel alone has more
	if len(seen) < least {
		return nil
	}
	return blocks
}

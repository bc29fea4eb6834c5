package mem_test

import (
	"slices"
	"testing"

	"nestdbg/internal/mem"
)

func TestMendOrder(t *testing.T) {
	for _, tt := range []struct {
		addrs, want []uint64
		moved       []int
	}{
		{nil, nil, nil},
		{[]uint64{7}, []uint64{7}, nil},
		{[]uint64{1, 1, 2}, []uint64{1, 1, 2}, nil},
		{[]uint64{1, 9, 2, 3}, []uint64{1, 1, 2, 3}, []int{1}},
		{[]uint64{4, 5, 0, 6}, []uint64{4, 5, 5, 6}, []int{2}},
		{[]uint64{9, 1, 2}, []uint64{1, 1, 2}, []int{0}},
		{[]uint64{1, 2, 0}, []uint64{1, 2, 2}, []int{2}},
		{[]uint64{1, 8, 9, 2, 3, 4, 1<<64 - 1}, []uint64{1, 1, 1, 2, 3, 4, 1<<64 - 1}, []int{1, 2}},
		{[]uint64{3, 2, 1}, []uint64{1, 1, 1}, []int{0, 1}},
	} {
		got := slices.Clone(tt.addrs)
		if moved := mem.MendOrder(got); !slices.Equal(moved, tt.moved) || !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, moved %v, want %v, %v", tt.addrs, got, moved, tt.want, tt.moved)
		}
	}
}

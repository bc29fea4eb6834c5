package mem

import (
	"fmt"
	"testing"
)

func TestSubtract(t *testing.T) {
	const last = ^uint64(0)
	for _, tt := range []struct {
		a, b []Range
		want string
	}{
		{nil, []Range{{1, 2}}, "[]"},
		{[]Range{{0, 9}}, nil, "[0x0-0x9]"},
		{[]Range{{0, 9}}, []Range{{0, 9}}, "[]"},
		{[]Range{{0, 9}}, []Range{{0, 0}, {4, 5}, {9, 20}}, "[0x1-0x3 0x6-0x8]"},
		{[]Range{{0, 9}, {20, 29}}, []Range{{5, 24}}, "[0x0-0x4 0x19-0x1d]"},
		{[]Range{{0, 9}, {20, 29}, {40, 49}}, []Range{{10, 19}, {41, 41}}, "[0x0-0x9 0x14-0x1d 0x28-0x28 0x2a-0x31]"},
		{[]Range{{0, last}}, []Range{{8, last}}, "[0x0-0x7]"},
	} {
		if got := fmt.Sprint(Subtract(tt.a, tt.b)); got != tt.want {
			t.Errorf("%v without %v: %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}

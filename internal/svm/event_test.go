package svm

import (
	"testing"

	"nestdbg/internal/svm/svmtest"
)

func TestEventInjection(t *testing.T) {
	for inj, want := range map[uint64]Event{
		0:                                {},
		0xb0e | 7<<32:                    {Type: 3, Vector: 14, ErrorCode: 7},
		1<<31 | 0xb0e | 7<<32:            {Valid: true, Type: 3, Vector: 14, ErrorCode: 7},
		1<<31 | 0x20:                     {Valid: true, Vector: 0x20},
		1<<31 | 2<<8 | 2:                 {Valid: true, Type: 2, Vector: 2},
		1<<31 | 4<<8 | 0x80 | 0xffff<<48: {Valid: true, Type: 4, Vector: 0x80, ErrorCode: 0xffff0000},
	} {
		if got := view(t, svmtest.VMCB(svmtest.Values{"EVENTINJ": inj})).EventInjection(); got != want {
			t.Errorf("EVENTINJ %#x is %+v, want %+v", inj, got, want)
		}
	}
}

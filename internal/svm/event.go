package svm

// Event is an interrupt or exception that VMRUN delivers to the guest before
// its first instruction (AMD APM Vol. 2, "Event Injection").
type Event struct {
	Valid     bool
	Type      uint8 // 0 external interrupt, 2 NMI, 3 exception, 4 software interrupt
	Vector    uint8
	ErrorCode uint32
}

// EventInjOffset is where EVENTINJ is in a VMCB, 8 bytes (AMD APM Vol. 2,
// "Layout of VMCB").
const EventInjOffset = offEventInj

// InterceptsOffset is where a VMCB has the word of intercepts whose bit 0, VMRUN, is set
// in every VMCB that can be entered.
const InterceptsOffset = offIntercept4

// EventInjection is the event that the next VMRUN of this VMCB delivers.
func (v *VMCB) EventInjection() Event {
	e := v.u64(offEventInj)
	return Event{
		Valid: e>>31&1 == 1, Type: uint8(e >> 8 & 7), Vector: uint8(e), ErrorCode: uint32(e >> 32),
	}
}

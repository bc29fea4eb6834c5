package vmx

// Event is an interrupt or exception that a VM entry delivers to the guest before
// its first instruction (SDM Vol. 3C, "VM-Entry Controls for Event Injection").
type Event struct {
	Valid     bool
	Type      uint8 // Event*
	Vector    uint8
	HasError  bool
	ErrorCode uint32
}

// Types of an injected event.
const (
	EventExternal  = 0
	EventNMI       = 2
	EventException = 3 // by hardware
	EventSoftware  = 4 // INT n
	EventICEBP     = 5
	EventSoftExc   = 6 // INT3, INTO
	EventOther     = 7 // a pending MTF exit
)

const (
	eventValid    = 1 << 31
	eventError    = 1 << 11
	eventReserved = 0x7ffff000 // bits 30:12
)

// EventInjection is the event that the next VM entry delivers. A processor clears
// its valid bit at each exit.
func (v *VMCS) EventInjection() Event {
	info, ok := v.Get(EntryInfo)
	if !ok {
		return Event{}
	}
	return Event{
		Valid: info&eventValid != 0, Type: uint8(info >> 8 & 7), Vector: uint8(info),
		HasError: info&eventError != 0, ErrorCode: uint32(v.get(EntryErrorCode)),
	}
}

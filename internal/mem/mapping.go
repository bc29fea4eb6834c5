package mem

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"unsafe"
)

// mappings are the files that are mapped now, so that a fault can be told with its file.
var mappings struct {
	sync.RWMutex
	list []mapping
}

type mapping struct {
	first, last uintptr // addresses in this process
	path        string
	offset      uint64 // in the file, of first
}

// Mapped tells that data is mapped from a file, where it begins at offset. If the file gets
// shorter, reading data is a fault that ends the process, unless the goroutine that reads
// began with Catch.
func Mapped(data []byte, path string, offset uint64) {
	if len(data) == 0 {
		return
	}
	first := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	mappings.Lock()
	defer mappings.Unlock()
	mappings.list = append(mappings.list, mapping{first, first + uintptr(len(data)) - 1, path, offset})
}

// Unmapped tells that data is about to be unmapped: nobody may read it any more.
func Unmapped(data []byte) {
	first := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	mappings.Lock()
	defer mappings.Unlock()
	mappings.list = slices.DeleteFunc(mappings.list, func(m mapping) bool { return m.first == first })
}

// LostError is a place of a mapped file that is not there any more.
type LostError struct {
	Path   string
	Offset uint64 // in the file
}

func (e *LostError) Error() string {
	return fmt.Sprintf("%s is not readable any more at its byte %#x: somebody has shortened the file, or its file system is full; "+
		"open it again when it is whole", e.Path, e.Offset)
}

// Catch makes a fault in mapped memory an error of the function that defers it:
//
//	defer mem.Catch(&err)()
//
// It counts for the goroutine that it is called on, and for no other that this one
// starts. A function that has no error may panic with the one of its workers. Any other
// panic goes on.
func Catch(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		v := recover()
		if v == nil {
			return
		}
		lost := lostBy(v)
		if lost == nil {
			panic(v)
		}
		*err = lost
	}
}

// lostBy is what a panic says of a mapped file; nil if it is about something else. With
// debug.SetPanicOnFault a fault is a runtime.Error that has the address.
func lostBy(v any) *LostError {
	if lost, ok := v.(*LostError); ok {
		return lost
	}
	fault, ok := v.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok {
		return nil
	}
	at := fault.Addr()
	mappings.RLock()
	defer mappings.RUnlock()
	for _, m := range mappings.list {
		if at >= m.first && at <= m.last {
			return &LostError{m.path, m.offset + uint64(at-m.first)}
		}
	}
	return nil
}

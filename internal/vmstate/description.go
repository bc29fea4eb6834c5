package vmstate

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// Description is what a stream of migrate says about itself: every field of
// every device by name. Streams of xen-save-devices-state have none. It is
// there to check layouts that are written down in this package.
type Description struct {
	PageSize int // of RAM, in bytes
	Sections []Described
}

// Described is one section with its fields in stream order.
type Described struct {
	Section
	Fields []Field
}

// Field is one value of a device. Names are QEMU's, put together from the
// structure they are in: "env.segs[2].base"; elements of an array have an
// index; a field of a subsection has its name in front: "cpu/svn_npt:env.nested_cr3".
type Field struct {
	Name   string
	Type   string
	Offset int    // in the section's payload
	Bytes  []byte // part of the parsed stream, big-endian
}

// Field returns the bytes of a field, or nil if the section does not have it.
func (d *Described) Field(name string) []byte {
	for _, f := range d.Fields {
		if f.Name == name {
			return f.Bytes
		}
	}
	return nil
}

// Section returns the described section, or nil if there is none.
func (d *Description) Section(name string, instance uint32) *Described {
	for i := range d.Sections {
		if s := &d.Sections[i]; s.Name == name && s.Instance == instance {
			return s
		}
	}
	return nil
}

// maxDepth bounds how deep structures may nest; real ones stay below eight.
const maxDepth = 32

// The JSON, as QEMU 7.2 migration/vmstate.c (vmsd_desc_field_start and _end) and
// savevm.c write it. An array that is described once has array_len, and the size
// of one element; otherwise each element is a field with an index.
type (
	jsonStream struct {
		PageSize int           `json:"page_size"`
		Devices  []*jsonDevice `json:"devices"`
	}
	jsonDevice struct {
		Name     string `json:"name"`
		Instance uint32 `json:"instance_id"`
		jsonState
	}
	jsonState struct {
		VMSD        string       `json:"vmsd_name"`
		Version     uint32       `json:"version"`
		Fields      []*jsonField `json:"fields"`
		Subsections []*jsonState `json:"subsections"`
	}
	jsonField struct {
		Name     string     `json:"name"`
		Type     string     `json:"type"`
		Size     int        `json:"size"`
		ArrayLen *int       `json:"array_len"`
		Index    *int       `json:"index"`
		Struct   *jsonState `json:"struct"`
	}
)

// ParseDescription reads the description at the end of a stream of migrate. A
// section whose size is not the one described is ErrCorrupt; a stream without a
// description is ErrUnsupported.
func ParseDescription(b []byte) (*Description, error) {
	s, err := parseSections(b)
	if err != nil {
		return nil, err
	}
	text := findDescription(b, s)
	if text == nil {
		return nil, fmt.Errorf("%w: the stream has no description", ErrUnsupported)
	}
	var j jsonStream
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("%w: description: %v", ErrCorrupt, err)
	}
	d := &Description{PageSize: j.PageSize}
	budget := len(b) // a field has a byte at least, by and large
	for _, dev := range j.Devices {
		if dev == nil {
			return nil, fmt.Errorf("%w: description with an empty device", ErrCorrupt)
		}
		sec := s.section(dev.Name, dev.Instance)
		if sec == nil {
			return nil, fmt.Errorf("%w: section %q instance %d is described but not there",
				ErrCorrupt, dev.Name, dev.Instance)
		}
		w := describer{sec: sec, left: &budget}
		if err := w.state(&dev.jsonState, "", 0); err != nil {
			return nil, err
		}
		if w.at != len(sec.Payload) {
			return nil, fmt.Errorf("%w: section %q has %d bytes, its description %d",
				ErrCorrupt, sec.Name, len(sec.Payload), w.at)
		}
		d.Sections = append(d.Sections, Described{*sec, w.fields})
	}
	return d, nil
}

// descriptionAt returns the JSON of the record at p, if it ends with the stream.
func descriptionAt(b []byte, p int) []byte {
	if p+5 > len(b) || b[p] != recordDescription {
		return nil
	}
	size := binary.BigEndian.Uint32(b[p+1:])
	if int64(size) != int64(len(b)-p-5) {
		return nil
	}
	return b[p+5:]
}

// findDescription returns the JSON behind the last section: footer, 0x00, record.
func findDescription(b []byte, s *State) []byte {
	if len(s.Sections) == 0 {
		return nil
	}
	last := s.Sections[len(s.Sections)-1]
	return descriptionAt(b, last.Offset+len(last.Payload)+footerSize+1)
}

// describer lays the fields of one section over its payload.
type describer struct {
	sec    *Section
	at     int
	fields []Field
	left   *int // fields we are still willing to make
}

func (w *describer) corrupt(name, what string) error {
	return fmt.Errorf("%w: description of section %q, field %q: %s", ErrCorrupt, w.sec.Name, name, what)
}

// state consumes the fields of s and then its subsections, each of which has a
// header in the stream: 0x05, name length u8, name, version be32.
func (w *describer) state(s *jsonState, prefix string, depth int) error {
	if depth > maxDepth {
		return w.corrupt(prefix, "too deep")
	}
	for _, f := range s.Fields {
		if f == nil {
			return w.corrupt(prefix, "empty")
		}
		if err := w.field(f, prefix, depth); err != nil {
			return err
		}
	}
	for _, sub := range s.Subsections {
		if sub == nil {
			return w.corrupt(prefix, "empty subsection")
		}
		r := reader{b: w.sec.Payload, at: w.at}
		if kind, name, version := r.u8(), r.counted(), r.u32(); r.short || kind != recordSubsection ||
			name != sub.VMSD || version != sub.Version {
			return w.corrupt(sub.VMSD, fmt.Sprintf("no such subsection at offset %#x", w.at))
		}
		w.at = r.at
		if err := w.state(sub, sub.VMSD+":", depth+1); err != nil {
			return err
		}
	}
	return nil
}

// field consumes a field: one value, a structure, or an array of either.
func (w *describer) field(f *jsonField, prefix string, depth int) error {
	count, name := 1, prefix+f.Name
	if f.ArrayLen != nil {
		count = *f.ArrayLen
	}
	if f.Index != nil {
		name = fmt.Sprintf("%s[%d]", name, *f.Index)
	}
	if f.Size < 0 || count < 0 || count > *w.left {
		return w.corrupt(name, fmt.Sprintf("%d elements of %d bytes", count, f.Size))
	}
	for i := range count {
		element := name
		if f.ArrayLen != nil {
			element = fmt.Sprintf("%s[%d]", name, i)
		}
		if err := w.element(f, element, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *describer) element(f *jsonField, name string, depth int) error {
	if *w.left--; *w.left < 0 {
		return w.corrupt(name, "too many fields")
	}
	if f.Struct != nil {
		start := w.at
		if err := w.state(f.Struct, name+".", depth+1); err != nil {
			return err
		}
		if w.at-start != f.Size {
			return w.corrupt(name, fmt.Sprintf("members have %d bytes, the whole %d", w.at-start, f.Size))
		}
		return nil
	}
	if f.Size > len(w.sec.Payload)-w.at {
		return w.corrupt(name, fmt.Sprintf("%d bytes at %#x pass the end", f.Size, w.at))
	}
	w.fields = append(w.fields, Field{name, f.Type, w.at, w.sec.Payload[w.at : w.at+f.Size]})
	w.at += f.Size
	return nil
}

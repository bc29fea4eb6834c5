package gdbserver

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"slices"

	"nestdbg/internal/rsp"
)

// document is what a client reads in pieces: made when it asks for the first,
// kept until it asks for another, so that the pieces fit together.
type document struct {
	object, annex string
	process       int
	text          []byte
}

// objects are what qXfer can read. Each makes the whole document. The table is
// never written.
var objects = [...]struct {
	name string
	make func(e *Engine, ctx context.Context, annex string) ([]byte, error)
	has  func(*Target) bool
}{
	{"features", (*Engine).featuresXML, nil},
	{"threads", (*Engine).threadsXML, nil},
	{"exec-file", (*Engine).execFile, hasSymbols},
	{"libraries", (*Engine).librariesXML, hasSymbols},
	{"osdata", (*Engine).osdataXML, func(t *Target) bool { return t.OSData != nil }},
}

// transfer serves "qXfer:OBJECT:read:ANNEX:OFFSET,LEN".
func (e *Engine) transfer(ctx context.Context, args []byte) error {
	parts := bytes.Split(args, []byte(":"))
	if len(parts) != 5 || string(parts[2]) != "read" {
		return ErrUnsupported
	}
	offset, length, err := parseSpan(parts[4])
	if err != nil {
		return err
	}
	if err := e.open(ctx, string(parts[1]), string(parts[3]), offset == 0); err != nil {
		return err
	}
	text := e.xfer.text
	if offset > uint64(len(text)) {
		return fmt.Errorf("%w: offset %d of %d", errBadPacket, offset, len(text))
	}
	rest := text[offset:]
	piece := rest[:min(uint64(len(rest)), length)]
	piece = piece[:rsp.EscapedPrefix(piece, maxBinaryRead)]
	more := byte('m')
	if len(piece) == len(rest) {
		more = 'l'
	} else if len(piece) == 0 {
		return errBadPacket // "m" without data would be asked for again, for ever
	}
	e.reply = append(append(e.reply, more), piece...)
	return nil
}

// open makes the document the current one, fresh if asked for.
func (e *Engine) open(ctx context.Context, object, annex string, fresh bool) error {
	pid := e.general.PID
	d := &e.xfer
	if !fresh && d.object == object && d.annex == annex && d.process == pid {
		return nil
	}
	*d = document{}
	for _, o := range objects {
		if o.name != object || o.has != nil && !o.has(&e.target) {
			continue
		}
		text, err := o.make(e, ctx, annex)
		if err != nil {
			return err
		}
		*d = document{object, annex, e.general.PID, text}
		return nil
	}
	return ErrUnsupported
}

// featuresXML is the target description of the current machine.
func (e *Engine) featuresXML(ctx context.Context, annex string) ([]byte, error) {
	if annex != "target.xml" {
		return nil, fmt.Errorf("%w: no description %q", errBadPacket, annex)
	}
	p, tid, err := e.current(ctx)
	if err != nil {
		return nil, err
	}
	if p.arch == nil {
		if _, err := e.registers(ctx, p, tid); err != nil {
			return nil, err
		}
	}
	return []byte(p.arch.TargetXML), nil
}

// threadsXML lists the threads of attached machines.
func (e *Engine) threadsXML(ctx context.Context, _ string) ([]byte, error) {
	out := []byte("<threads>")
	for _, p := range e.visible(ctx) {
		threads, err := e.listThreads(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, t := range threads {
			out = append(out, `<thread id="`...)
			out = rsp.ThreadID{PID: p.pid, TID: t.ID}.Append(out, e.client.multiprocess)
			if t.Core >= 0 {
				out = fmt.Appendf(out, `" core="%d`, t.Core)
			}
			out = append(appendXML(append(out, `" name="`...), t.Name), `">`...)
			out = append(appendXML(out, t.Extra), "</thread>"...)
		}
	}
	return append(out, "</threads>"...), nil
}

// execFile is the path of a machine's kernel; the annex is the machine, in hex.
func (e *Engine) execFile(ctx context.Context, annex string) ([]byte, error) {
	p, _, err := e.current(ctx)
	if annex != "" {
		pid, parseErr := rsp.ParseHex(annex)
		if parseErr != nil || pid > 1<<30 {
			return nil, errBadPacket
		}
		p, err = e.processes[int(pid)], nil
		if p == nil {
			err = errNoProcess
		}
	}
	if err != nil {
		return nil, err
	}
	path := e.target.Symbols.ExecFile(p.pid)
	if path == "" {
		return nil, refuse("no file for the kernel of machine %d", p.pid)
	}
	return []byte(path), nil
}

// librariesXML lists the modules of the current machine. gdb adds the address of a
// section to the section's own, which is 0 in a relocatable file; that of a segment is
// where it is.
func (e *Engine) librariesXML(ctx context.Context, _ string) ([]byte, error) {
	p, _, err := e.current(ctx)
	if err != nil {
		return nil, err
	}
	out := []byte("<library-list>")
	for _, l := range e.target.Symbols.Libraries(p.pid) {
		out = append(appendXML(append(out, `<library name="`...), l.Path), `">`...)
		for _, a := range l.Segments {
			out = fmt.Appendf(out, `<segment address="%#x"/>`, a)
		}
		for _, a := range l.Sections {
			out = fmt.Appendf(out, `<section address="%#x"/>`, a)
		}
		out = append(out, "</library>"...)
	}
	return append(out, "</library-list>"...), nil
}

// osdataXML is one table of "info os", or with an empty annex the list of them.
func (e *Engine) osdataXML(ctx context.Context, annex string) ([]byte, error) {
	tables, err := e.target.OSData.Tables(ctx)
	if err != nil {
		return nil, err
	}
	if annex == "" {
		list := OSTable{Name: "types", Columns: []string{"Type", "Description", "Title"}}
		for _, t := range tables {
			list.Rows = append(list.Rows, []string{t.Name, t.Description, t.Title})
		}
		return list.appendXML(nil), nil
	}
	i := slices.IndexFunc(tables, func(t OSTable) bool { return t.Name == annex })
	if i < 0 {
		return nil, fmt.Errorf("%w: no table %q", errBadPacket, annex)
	}
	return tables[i].appendXML(nil), nil
}

func (t *OSTable) appendXML(out []byte) []byte {
	out = append(appendXML(append(out, `<osdata type="`...), t.Name), `">`...)
	for _, row := range t.Rows {
		out = append(out, "<item>"...)
		for i, cell := range row[:min(len(row), len(t.Columns))] {
			out = append(appendXML(append(out, `<column name="`...), t.Columns[i]), `">`...)
			out = append(appendXML(out, cell), "</column>"...)
		}
		out = append(out, "</item>"...)
	}
	return append(out, "</osdata>"...)
}

// appendXML appends text, which may come from a guest, so that it cannot be
// markup.
func appendXML(out []byte, text string) []byte {
	b := bytes.NewBuffer(out)
	xml.EscapeText(b, []byte(text)) // a Buffer does not fail
	return b.Bytes()
}

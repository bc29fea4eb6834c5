package dump

import "fmt"

// lzoDecompress undoes LZO1X, which makedumpfile -l and dump-guest-memory -l use, by
// the description of the stream in Linux Documentation/staging/lzo.rst. The libraries
// for Go are bindings to C or under the GPL. Each instruction copies from what was
// put out before, then up to three or more bytes as they are.
func lzoDecompress(in []byte, size int) ([]byte, error) {
	d := &lzo{in: in, out: make([]byte, 0, size), size: size}
	if err := d.run(); err != nil {
		return nil, fmt.Errorf("LZO, byte %#x of %#x: %w", d.at, len(in), err)
	}
	return d.out, nil
}

type lzo struct {
	in   []byte
	at   int // in in
	out  []byte
	size int
}

var (
	errLZOEnd  = fmt.Errorf("the data ends too early")
	errLZOBack = fmt.Errorf("a copy from before the beginning")
	errLZOMore = fmt.Errorf("more than a page")
)

func (d *lzo) byte() (int, error) {
	if d.at >= len(d.in) {
		return 0, errLZOEnd
	}
	d.at++
	return int(d.in[d.at-1]), nil
}

// length is a length whose field was zero: 255 for each zero byte that follows, and
// the first that is none.
func (d *lzo) length(base int) (int, error) {
	for n := base; n <= d.size+base; n += 255 {
		b, err := d.byte()
		if err != nil || b != 0 {
			return n + b, err
		}
	}
	return 0, errLZOMore
}

// literals copies n bytes as they are.
func (d *lzo) literals(n int) error {
	if n > len(d.in)-d.at {
		return errLZOEnd
	}
	if n > d.size-len(d.out) {
		return errLZOMore
	}
	d.out = append(d.out, d.in[d.at:d.at+n]...)
	d.at += n
	return nil
}

// back copies n bytes from distance before the end of what was put out; they may
// overlap it.
func (d *lzo) back(n, distance int) error {
	if distance > len(d.out) || distance <= 0 {
		return errLZOBack
	}
	if n > d.size-len(d.out) {
		return errLZOMore
	}
	for from := len(d.out) - distance; n > 0; n-- {
		d.out = append(d.out, d.out[from])
		from++
	}
	return nil
}

// run executes the instructions. state is how many literals the last one copied, 4
// for a run of its own, as it changes what the lowest opcodes mean.
func (d *lzo) run() error {
	state := 0
	if len(d.in) > 0 && d.in[0] > 17 { // the stream begins with literals
		d.at = 1
		n := int(d.in[0]) - 17
		if err := d.literals(n); err != nil {
			return err
		}
		state = min(n, 4)
	}
	for {
		op, err := d.byte()
		if err != nil {
			return err
		}
		if op < 16 && state == 0 {
			n := op + 3
			if op == 0 {
				if n, err = d.length(18); err != nil {
					return err
				}
			}
			if err := d.literals(n); err != nil {
				return err
			}
			state = 4
			continue
		}
		n, distance, low, err := d.match(op, state)
		if err != nil {
			return err
		}
		if distance == 0 { // the end
			if d.at != len(d.in) {
				return fmt.Errorf("something behind the end")
			}
			return nil
		}
		if err := d.back(n, distance); err != nil {
			return err
		}
		state = low & 3
		if err := d.literals(state); err != nil {
			return err
		}
	}
}

// match decodes an instruction that copies from before: how much, from how far, and
// the byte whose low bits count the literals behind it. Distance 0 is the end.
func (d *lzo) match(op, state int) (n, distance, low int, err error) {
	switch {
	case op >= 64:
		h, err := d.byte()
		return op>>5 + 1, h<<3 + op>>2&7 + 1, op, err
	case op >= 32:
		n = op&31 + 2
		if op&31 == 0 {
			if n, err = d.length(33); err != nil {
				return 0, 0, 0, err
			}
		}
		far, err := d.word()
		return n, far>>2 + 1, far, err
	case op >= 16:
		n = op&7 + 2
		if op&7 == 0 {
			if n, err = d.length(9); err != nil {
				return 0, 0, 0, err
			}
		}
		far, err := d.word()
		if distance = 16384 + op>>3&1<<14 + far>>2; distance == 16384 {
			distance = 0
		}
		return n, distance, far, err
	}
	h, err := d.byte()
	if state == 4 {
		return 3, h<<2 + op>>2 + 2049, op, err
	}
	return 2, h<<2 + op>>2 + 1, op, err
}

// word is 16 bits little-endian.
func (d *lzo) word() (int, error) {
	low, err := d.byte()
	if err != nil {
		return 0, err
	}
	high, err := d.byte()
	return low | high<<8, err
}

package units

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// ErrBadSubUnit is bytes that do not link one sub-state to the next. It says that
// bytes and sub-states do not belong together, not which of them is wrong.
var ErrBadSubUnit = errors.New("bytes do not match the sub-states of their unit")

// SubStatesBytes is the exact length of the sub-states of a unit of so many bytes,
// of a blob hashed by alg: one state at each border of SubUnit inside of it.
func SubStatesBytes(alg digest.Algorithm, length int64) int {
	return int((max(length, 1)-1)/SubUnit) * StateSize(alg)
}

// SubStates hashes unit i, which it reads from r, and gives its sub-states: the raw
// states at each border of SubUnit inside of it, in order. A unit that does not hold
// has none (ErrBadUnit), so that who reads his own disk tells no lie by it.
func (l *List) SubStates(i int, r io.Reader) ([]byte, error) {
	h, err := l.before(i)
	if err != nil {
		return nil, err
	}
	_, length := l.Span(i)
	subs := make([]byte, 0, SubStatesBytes(h.alg.name, length))
	buf := make([]byte, min(SubUnit, length))
	for left := length; left > 0; {
		part := buf[:min(SubUnit, left)]
		if _, err := io.ReadFull(r, part); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("unit %d of %s: %w", i, l.Digest, err)
		}
		_, _ = h.Write(part)
		if left -= int64(len(part)); left > 0 {
			s, err := h.state()
			if err != nil {
				return nil, err
			}
			subs = append(subs, s...)
		}
	}
	return subs, l.linked(i, h)
}

// Checker checks one unit while it comes, a SubUnit at a time, against sub-states
// that somebody sent for it. They are that peer's word alone: no record names them,
// so bytes that fit them are worth as much as the peer, until the unit's end links
// to the list's next state. Only then, [Checker.Done], is anything proven, and then
// all of it, whatever the sub-states were.
//
// It keeps nothing of the data and has one owner.
type Checker struct {
	l    *List
	unit int
	subs []byte
	h    *chain
	size int64 // bytes of the unit
	at   int64 // of them taken
	good int64 // of them below the last border that fits
	bad  error // of a border that did not fit
	over error // of the unit
}

// Checker gives one for unit i, at its first byte. It keeps subs. ErrBadSubUnit:
// they are more or fewer than a unit of this length has.
func (l *List) Checker(i int, subs []byte) (*Checker, error) {
	h, err := l.before(i)
	if err != nil {
		return nil, err
	}
	c := &Checker{l: l, unit: i, subs: subs, h: h}
	_, c.size = l.Span(i)
	if want := SubStatesBytes(h.alg.name, c.size); len(subs) != want {
		return nil, fmt.Errorf("%w: %d bytes of sub-states for unit %d of %s, expected %d", ErrBadSubUnit, len(subs), i, l.Digest, want)
	}
	if c.size == 0 {
		c.over = l.linked(i, h)
	}
	return c, nil
}

// Take takes the unit's next bytes, any number of them. Its errors are final. After
// ErrBadSubUnit, at a border, Checked stands still; the rest may be taken all the
// same, to learn whether it was the sub-states that were wrong: then Take goes on
// to give ErrBadSubUnit and Done becomes true. ErrBadUnit: the unit does not link.
func (c *Checker) Take(p []byte) error {
	for len(p) > 0 && c.over == nil {
		if c.at == c.size {
			c.over = fmt.Errorf("%w: unit %d of %s has %d bytes, got more", ErrBadUnit, c.unit, c.l.Digest, c.size)
			break
		}
		n := min(SubUnit-c.at%SubUnit, c.size-c.at, int64(len(p)))
		_, _ = c.h.Write(p[:n])
		c.at += n
		p = p[n:]
		switch {
		case c.at == c.size:
			if c.over = c.l.linked(c.unit, c.h); c.over == nil && c.bad == nil {
				c.good = c.size
			}
		case c.at%SubUnit == 0 && c.bad == nil:
			c.border()
		}
	}
	if c.over != nil {
		return c.over
	}
	return c.bad
}

// border compares the state at a border inside of the unit.
func (c *Checker) border() {
	got, err := c.h.state()
	if err != nil {
		c.bad, c.over = err, err
		return
	}
	n := len(got)
	k := int(c.at/SubUnit) - 1
	if !bytes.Equal(got, c.subs[k*n:(k+1)*n]) {
		c.bad = fmt.Errorf("%w: %d of unit %d of %s", ErrBadSubUnit, k, c.unit, c.l.Digest)
		return
	}
	c.good = c.at
}

// Checked is how many of the unit's first bytes fit the sub-states: a multiple of
// SubUnit, or the whole unit when it links and all of them did.
func (c *Checker) Checked() int64 { return c.good }

// Done says whether the whole unit was taken and links to the list's next state.
func (c *Checker) Done() bool { return c.over == nil && c.at == c.size }

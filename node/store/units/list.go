package units

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

const (
	// Unit is the length of a unit of blobs up to 2 GiB, and the border at which
	// a Hasher notes a state. A multiple of the hash's block of 64 bytes.
	Unit int64 = 1 << 20

	// Lists are thinned above these sizes, so that a list stays at 64 KiB for
	// blobs up to 8 GiB and grows by 4 MiB a TiB beyond.
	largeSize int64 = 2 << 30
	hugeSize  int64 = 8 << 30
	largeUnit       = 4 * Unit
	hugeUnit        = 8 * Unit

	// MaxSize bounds a blob, and with it the list that a receiver has to hold in
	// memory (4 MiB).
	MaxSize int64 = 1 << 40

	// SubUnit is the grain of the sub-states that any holder may send for one
	// unit later; a divisor of every unit size. List form 1 has none.
	SubUnit int64 = 64 << 10
)

// Errors of this package. The messages of what wraps them name unit and blob.
var (
	// ErrBadUnit is bytes that do not link state i to state i+1.
	ErrBadUnit = errors.New("unit does not match its list")
	// ErrBadList is a list that its record does not name.
	ErrBadList = errors.New("unit list does not match its record")
	// ErrBadRecord is a record that is malformed, not canonical or wrongly signed.
	ErrBadRecord = errors.New("blob record is not valid")
	// ErrTooLarge is a blob above MaxSize.
	ErrTooLarge = fmt.Errorf("blob is larger than %d bytes", MaxSize)
	// ErrUnsupportedDigest is a digest that is not a well-formed sha256.
	ErrUnsupportedDigest = errors.New("digest algorithm is not supported: only sha256 is")
)

// UnitSizeFor is the canonical unit length of a blob: a function of its size
// alone, so that nobody can choose it.
func UnitSizeFor(size int64) int64 {
	switch {
	case size > hugeSize:
		return hugeUnit
	case size > largeSize:
		return largeUnit
	default:
		return Unit
	}
}

// CheckDigest refuses everything but a well-formed sha256 digest.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w (%q: %v)", ErrUnsupportedDigest, string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%w (got %s)", ErrUnsupportedDigest, d.Algorithm())
	}
	return nil
}

// List is the chain of states of one blob at its unit borders. The state before
// the first unit is the standard's and the one after the last is the digest, so
// a blob of n units keeps n-1 states. Immutable.
type List struct {
	Digest   digest.Digest
	Size     int64 // bytes of the blob
	UnitSize int64 // bytes of each unit but the last
	states   []State
}

// Units is the number of units; an empty blob has one, which is empty, so that
// its digest is checked like any other.
func (l *List) Units() int { return count(l.Size, l.UnitSize) }

func count(size, unitSize int64) int {
	if size == 0 {
		return 1
	}
	return int((size + unitSize - 1) / unitSize)
}

// Span gives the place of unit i in the blob.
func (l *List) Span(i int) (off, length int64) {
	off = int64(i) * l.UnitSize
	return off, min(l.UnitSize, l.Size-off)
}

// Verify says whether data is unit i: hashed from state i it must give state
// i+1, and the digest for the last one. A nil error for every i is the proof
// that the blob has its digest.
func (l *List) Verify(i int, data []byte) error {
	if i < 0 || i >= l.Units() {
		return fmt.Errorf("%w: unit %d of %s, which has %d", ErrBadUnit, i, l.Digest, l.Units())
	}
	off, length := l.Span(i)
	if int64(len(data)) != length {
		return fmt.Errorf("%w: unit %d of %s has %d bytes, got %d", ErrBadUnit, i, l.Digest, length, len(data))
	}
	from := initial
	if i > 0 {
		from = l.states[i-1]
	}
	h, err := at(from, off)
	if err != nil {
		return err
	}
	_, _ = h.Write(data)
	if i == l.Units()-1 {
		if digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil)) != l.Digest {
			return fmt.Errorf("%w: last unit %d of %s", ErrBadUnit, i, l.Digest)
		}
		return nil
	}
	got, err := stateOf(h)
	if err != nil {
		return err
	}
	if got != l.states[i] {
		return fmt.Errorf("%w: unit %d of %s", ErrBadUnit, i, l.Digest)
	}
	return nil
}

// rootContext separates this hash from every other use of SHA-256.
const rootContext = "portolan unit list 1\n"

// Root is the SHA-256 of the list in its canonical form: what it is about
// (digest, size, unit size) and then the states.
func (l *List) Root() [32]byte {
	h := sha256.New()
	_, _ = h.Write([]byte(rootContext))
	_, _ = h.Write(appendSubject(nil, l.Digest, l.Size, l.UnitSize))
	for i := range l.states {
		_, _ = h.Write(l.states[i][:])
	}
	return [32]byte(h.Sum(nil))
}

// algSHA256 is the algorithm byte of the binary forms; further algorithms are
// appended, numbers never change.
const algSHA256 = 1

// subjectSize is the length of what appendSubject adds.
const subjectSize = 1 + 32 + 8 + 8

func appendSubject(b []byte, d digest.Digest, size, unitSize int64) []byte {
	b = append(b, algSHA256)
	b = append(b, rawDigest(d)...)
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	return binary.BigEndian.AppendUint64(b, uint64(unitSize))
}

// Forms of a list, its first byte. The rest is states alone: what they are
// about stands in the record.
//
//	1: the raw states at the unit borders, in order (n-1 times 32 bytes)
//
// A form with the 64 KiB sub-states of some units would be 2.
const formStates = 1

// ListBytes is the exact length of the form that MarshalBinary gives for a blob
// of this size: a receiver knows it before it reads.
func ListBytes(size int64) int {
	return 1 + (count(size, UnitSizeFor(size))-1)*StateSize
}

// MarshalBinary gives the form that ParseList reads.
func (l *List) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, 1+len(l.states)*StateSize)
	b = append(b, formStates)
	for i := range l.states {
		b = append(b, l.states[i][:]...)
	}
	return b, nil
}

// ParseList reads a list that belongs to rec, and refuses any other with
// ErrBadList. It does not check rec's signature: see [Record.Verify].
func ParseList(rec Record, b []byte) (*List, error) {
	if err := rec.check(); err != nil {
		return nil, err
	}
	if len(b) != ListBytes(rec.Size) {
		return nil, fmt.Errorf("%w: %d bytes for %s, expected %d", ErrBadList, len(b), rec.Digest, ListBytes(rec.Size))
	}
	if b[0] != formStates {
		return nil, fmt.Errorf("%w: form %d for %s is of a newer version", ErrBadList, b[0], rec.Digest)
	}
	l := &List{Digest: rec.Digest, Size: rec.Size, UnitSize: rec.UnitSize}
	l.states = make([]State, (len(b)-1)/StateSize)
	for i := range l.states {
		l.states[i] = State(b[1+i*StateSize:])
	}
	if err := rec.Matches(l); err != nil {
		return nil, err
	}
	return l, nil
}

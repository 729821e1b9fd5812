package units

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	// Unit is the length of a unit of blobs up to 2 GiB, and the border at which
	// a Hasher notes a state. A multiple of the hash's block (64 or 128 bytes).
	Unit int64 = 1 << 20

	// Lists are thinned above these sizes, so that a list stays at 2048 states
	// (64 KiB for sha256, 128 KiB for sha512) for blobs up to 8 GiB and grows by
	// 131,072 a TiB beyond.
	largeSize int64 = 2 << 30
	hugeSize  int64 = 8 << 30
	largeUnit       = 4 * Unit
	hugeUnit        = 8 * Unit

	// MaxSize bounds a blob, and with it the list that a receiver has to hold in
	// memory (4 MiB for sha256, 8 MiB for sha512).
	MaxSize int64 = 1 << 40

	// SubUnit is the grain of the sub-states that anybody who has a unit may send
	// for it (see Checker); a divisor of every unit size. Lists have none.
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
	// ErrUnsupportedDigest is a digest that is not a well-formed sha256 or sha512.
	ErrUnsupportedDigest = errors.New("digest is not supported: only sha256 and sha512 are, in lower case")
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

// CheckDigest refuses everything but a well-formed sha256 or sha512 digest.
func CheckDigest(d digest.Digest) error {
	if isPlain(d) {
		return nil
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w (%q: %w)", ErrUnsupportedDigest, string(d), err)
	}
	return CheckAlgorithm(d.Algorithm())
}

// ParseDigest reads a digest that comes from outside: sha256 with 64 or sha512
// with 128 hexadecimal digits, all in lower case. Anything else is
// ErrUnsupportedDigest.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	return d, CheckDigest(d)
}

// CheckAlgorithm refuses everything but sha256 and sha512.
func CheckAlgorithm(alg digest.Algorithm) error {
	if algorithmOf(alg) == nil {
		return fmt.Errorf("%w (got %q)", ErrUnsupportedDigest, string(alg))
	}
	return nil
}

// chainOf gives the algorithm of a digest, or nil for what CheckDigest refuses
// by its algorithm.
func chainOf(d digest.Digest) *algorithm {
	name, _, _ := strings.Cut(string(d), ":") // the methods of d panic when it is malformed
	return algorithmOf(digest.Algorithm(name))
}

// List is the chain of states of one blob at its unit borders. The state before
// the first unit is the standard's and the one after the last is the digest, so
// a blob of n units keeps n-1 states. Immutable.
type List struct {
	Digest   digest.Digest
	Size     int64  // bytes of the blob
	UnitSize int64  // bytes of each unit but the last
	states   []byte // raw, one behind another; their length follows from Digest
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
// that the blob has its digest. ErrUnavailable, in plain-digest mode, says
// nothing about data.
func (l *List) Verify(i int, data []byte) error {
	h, err := l.before(i)
	if err != nil {
		return err
	}
	if _, length := l.Span(i); int64(len(data)) != length {
		return fmt.Errorf("%w: unit %d of %s has %d bytes, got %d", ErrBadUnit, i, l.Digest, length, len(data))
	}
	_, _ = h.Write(data)
	return l.linked(i, h)
}

// before gives the chain at the first byte of unit i.
func (l *List) before(i int) (*chain, error) {
	if i < 0 || i >= l.Units() {
		return nil, fmt.Errorf("%w: unit %d of %s, which has %d", ErrBadUnit, i, l.Digest, l.Units())
	}
	a := chainOf(l.Digest)
	if a == nil {
		return nil, fmt.Errorf("%w: unit %d of %s: %w", ErrBadUnit, i, l.Digest, CheckDigest(l.Digest))
	}
	if err := a.tested(); err != nil {
		return nil, err
	}
	from := a.initial
	if i > 0 {
		from = l.states[(i-1)*a.size : i*a.size]
	}
	off, _ := l.Span(i)
	return a.at(from, off)
}

// linked says whether h, which took unit i, stands at state i+1, or at the digest
// behind the last one.
func (l *List) linked(i int, h *chain) error {
	n := h.alg.size
	if i == l.Units()-1 {
		if digest.NewDigestFromBytes(h.alg.name, h.Sum(nil)) != l.Digest {
			return fmt.Errorf("%w: last unit %d of %s", ErrBadUnit, i, l.Digest)
		}
		return nil
	}
	got, err := h.state()
	if err != nil {
		return err
	}
	if !bytes.Equal(got, l.states[i*n:(i+1)*n]) {
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
	_, _ = h.Write(l.states)
	return [32]byte(h.Sum(nil))
}

// subjectSize is the length of what appendSubject adds: the algorithm's byte,
// the raw digest, size and unit size.
func subjectSize(a *algorithm) int { return 1 + a.size + 8 + 8 }

// appendSubject adds what a list and its record are about. Its callers check the
// digest, before or after: a malformed one counts as zeros.
func appendSubject(b []byte, d digest.Digest, size, unitSize int64) []byte {
	a := chainOf(d)
	if a == nil {
		a = sha256Chain
	}
	b = append(b, a.code)
	b = append(b, a.raw(d)...)
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	return binary.BigEndian.AppendUint64(b, uint64(unitSize))
}

// Forms of a list, its first byte. The rest is states alone: what they are
// about stands in the record.
//
//	1: the raw states at the unit borders, in order (n-1 times 32 bytes for
//	   sha256, 64 for sha512: the digest's algorithm says which)
//
// Sub-states of units are in no list: see Checker.
const formStates = 1

// ListBytes is the exact length of the form that MarshalBinary gives for a blob
// of this size, hashed by alg: a receiver knows it before it reads.
func ListBytes(alg digest.Algorithm, size int64) int {
	return 1 + (count(size, UnitSizeFor(size))-1)*StateSize(alg)
}

// MarshalBinary gives the form that ParseList reads.
func (l *List) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, 1+len(l.states))
	b = append(b, formStates)
	return append(b, l.states...), nil
}

// ParseList reads a list that belongs to rec, and refuses any other with
// ErrBadList. It does not check rec's signature: see [Record.Verify].
func ParseList(rec Record, b []byte) (*List, error) {
	if err := rec.check(); err != nil {
		return nil, err
	}
	if want := ListBytes(rec.Digest.Algorithm(), rec.Size); len(b) != want {
		return nil, fmt.Errorf("%w: %d bytes for %s, expected %d", ErrBadList, len(b), rec.Digest, want)
	}
	if b[0] != formStates {
		return nil, fmt.Errorf("%w: form %d for %s is of a newer version", ErrBadList, b[0], rec.Digest)
	}
	l := &List{Digest: rec.Digest, Size: rec.Size, UnitSize: rec.UnitSize, states: bytes.Clone(b[1:])}
	if err := rec.Matches(l); err != nil {
		return nil, err
	}
	return l, nil
}

package units

import (
	"crypto/sha256"
	"fmt"
	"hash"

	"github.com/opencontainers/go-digest"
)

// Hasher computes the SHA-256 of a stream and notes the chain state at every
// border of [Unit] bytes on the way, which costs nothing over the plain hash.
// It keeps 32 bytes per MiB and nothing of the data.
type Hasher struct {
	h      hash.Hash
	res    resumable // nil in plain-digest mode
	size   int64
	states []State // after each full Unit
}

// NewHasher starts at the first byte.
func NewHasher() *Hasher {
	h := sha256.New()
	s := &Hasher{h: h}
	if r, ok := h.(resumable); ok && Available() == nil {
		s.res = r
	}
	return s
}

// ResumeHasher goes on at byte len(states)*Unit, with the states that
// [Hasher.States] gave there.
func ResumeHasher(states []State) (*Hasher, error) {
	if len(states) == 0 {
		return NewHasher(), nil
	}
	if err := Available(); err != nil {
		return nil, err
	}
	size := int64(len(states)) * Unit
	h, err := at(states[len(states)-1], size)
	if err != nil {
		return nil, err
	}
	return &Hasher{h: h, res: h, size: size, states: append([]State(nil), states...)}, nil
}

// Write implements io.Writer; it fails only if the toolchain stops giving its
// states half way, which the self test rules out.
func (s *Hasher) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(Unit-s.size%Unit, int64(len(p)))
		_, _ = s.h.Write(p[:k])
		s.size += k
		p = p[k:]
		if s.res != nil && s.size%Unit == 0 {
			st, err := stateOf(s.res)
			if err != nil {
				return n - len(p), err
			}
			s.states = append(s.states, st)
		}
	}
	return n, nil
}

// Size is the number of bytes hashed so far, those before a resume included.
func (s *Hasher) Size() int64 { return s.size }

// States gives the states noted so far: one for each full Unit. Callers may keep
// the slice; it is never changed, only grown.
func (s *Hasher) States() []State { return s.states[:len(s.states):len(s.states)] }

// Digest is the digest of the bytes so far; hashing may go on.
func (s *Hasher) Digest() digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, s.h.Sum(nil))
}

// List gives the canonical unit list of the bytes so far, thinned to the unit
// size that their number asks for. It fails with ErrUnavailable in plain-digest
// mode and with ErrTooLarge beyond MaxSize.
func (s *Hasher) List() (*List, error) {
	if s.res == nil {
		return nil, Available()
	}
	if s.size > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, s.size)
	}
	l := &List{Digest: s.Digest(), Size: s.size, UnitSize: UnitSizeFor(s.size)}
	step := int(l.UnitSize / Unit)
	l.states = make([]State, l.Units()-1)
	for i := range l.states {
		l.states[i] = s.states[(i+1)*step-1]
	}
	return l, nil
}

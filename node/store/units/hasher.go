package units

import (
	"fmt"
	"hash"

	"github.com/opencontainers/go-digest"
)

// Hasher computes the digest of a stream and notes the chain state at every
// border of [Unit] bytes on the way, which costs nothing over the plain hash. It
// keeps a state (32 bytes for sha256, 64 for sha512) per MiB and nothing of the
// data.
type Hasher struct {
	alg    *algorithm
	h      hash.Hash
	chain  *chain // h, or nil in plain-digest mode
	size   int64
	states []byte // after each full Unit, one behind another
}

// NewHasher starts at the first byte. It panics for an algorithm that is not
// supported, as digest.Algorithm.Hash does: callers have checked the digest or
// the algorithm ([CheckDigest], [CheckAlgorithm]).
func NewHasher(alg digest.Algorithm) *Hasher {
	a := algorithmOf(alg)
	if a == nil {
		panic(fmt.Sprintf("hash algorithm %q is not supported", alg))
	}
	if c, err := a.begin(); err == nil && a.tested() == nil {
		return &Hasher{alg: a, h: c, chain: c}
	}
	return &Hasher{alg: a, h: a.new()}
}

// ResumeHasher goes on behind the last of the states that [Hasher.States] of a
// Hasher of the same algorithm gave: at byte Unit times their number.
func ResumeHasher(alg digest.Algorithm, states []byte) (*Hasher, error) {
	a := algorithmOf(alg)
	if a == nil || len(states)%a.size != 0 {
		return nil, fmt.Errorf("%w: %d bytes of states for %q", ErrUnsupportedDigest, len(states), alg)
	}
	if len(states) == 0 {
		return NewHasher(alg), nil
	}
	if err := a.tested(); err != nil {
		return nil, err
	}
	size := int64(len(states)/a.size) * Unit
	c, err := a.at(states[len(states)-a.size:], size)
	if err != nil {
		return nil, err
	}
	return &Hasher{alg: a, h: c, chain: c, size: size, states: append([]byte(nil), states...)}, nil
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
		if s.chain != nil && s.size%Unit == 0 {
			st, err := s.chain.state()
			if err != nil {
				return n - len(p), err
			}
			s.states = append(s.states, st...)
		}
	}
	return n, nil
}

// Algorithm is the one that the Hasher was made with.
func (s *Hasher) Algorithm() digest.Algorithm { return s.alg.name }

// Size is the number of bytes hashed so far, those before a resume included.
func (s *Hasher) Size() int64 { return s.size }

// States gives the raw states noted so far, [StateSize] bytes for each full
// Unit. Callers may keep the slice; it is never changed, only grown.
func (s *Hasher) States() []byte { return s.states[:len(s.states):len(s.states)] }

// Digest is the digest of the bytes so far; hashing may go on.
func (s *Hasher) Digest() digest.Digest {
	return digest.NewDigestFromBytes(s.alg.name, s.h.Sum(nil))
}

// List gives the canonical unit list of the bytes so far, thinned to the unit
// size that their number asks for. It fails with ErrUnavailable in plain-digest
// mode and with ErrTooLarge beyond MaxSize.
func (s *Hasher) List() (*List, error) {
	if s.chain == nil {
		return nil, s.alg.available()
	}
	if s.size > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, s.size)
	}
	l := &List{Digest: s.Digest(), Size: s.size, UnitSize: UnitSizeFor(s.size)}
	step, n := int(l.UnitSize/Unit), s.alg.size
	l.states = make([]byte, 0, (l.Units()-1)*n)
	for i := range l.Units() - 1 {
		last := (i+1)*step - 1
		l.states = append(l.states, s.states[last*n:(last+1)*n]...)
	}
	return l, nil
}

package units

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"sync"
)

// StateSize is the length of a raw SHA-256 chain state.
const StateSize = 32

// State is the chain value of SHA-256 at a unit border.
type State [StateSize]byte

// initial is the state before the first byte (FIPS 180-4, 5.3.3).
var initial = State{
	0x6a, 0x09, 0xe6, 0x67, 0xbb, 0x67, 0xae, 0x85, 0x3c, 0x6e, 0xf3, 0x72, 0xa5, 0x4f, 0xf5, 0x3a,
	0x51, 0x0e, 0x52, 0x7f, 0x9b, 0x05, 0x68, 0x8c, 0x1f, 0x83, 0xd9, 0xab, 0x5b, 0xe0, 0xcd, 0x19,
}

// The form that crypto/sha256 marshals to: magic, state, pending block, length.
const (
	goMagic     = "sha\x03"
	goBlockSize = 64
	goStateSize = len(goMagic) + StateSize + goBlockSize + 8
)

// ErrUnavailable says that this toolchain's SHA-256 does not give its states in
// the known form; blobs are then checked by whole digest alone.
var ErrUnavailable = errors.New("this build's SHA-256 does not give its inner states: blobs are checked whole")

// resumable is what crypto/sha256 gives besides hash.Hash.
type resumable interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// at gives a SHA-256 that continues from state s after length bytes. The length
// is always the caller's own knowledge and a multiple of the block size.
func at(s State, length int64) (resumable, error) {
	h, ok := sha256.New().(resumable)
	if !ok {
		return nil, ErrUnavailable
	}
	buf := make([]byte, 0, goStateSize)
	buf = append(buf, goMagic...)
	buf = append(buf, s[:]...)
	buf = append(buf, make([]byte, goBlockSize)...)
	buf = binary.BigEndian.AppendUint64(buf, uint64(length))
	if err := h.UnmarshalBinary(buf); err != nil {
		return nil, fmt.Errorf("%w (%v)", ErrUnavailable, err)
	}
	return h, nil
}

// stateOf reads the chain state of h, which must stand at a block border.
func stateOf(h resumable) (State, error) {
	var buf [goStateSize]byte
	b, err := h.AppendBinary(buf[:0])
	if err != nil || len(b) != goStateSize || string(b[:len(goMagic)]) != goMagic {
		return State{}, ErrUnavailable
	}
	return State(b[len(goMagic) : len(goMagic)+StateSize]), nil
}

// Available runs the self test once and says whether unit lists can be made and
// checked by this build.
var Available = sync.OnceValue(selfTest)

// selfTest compares the toolchain's states with values computed independently
// from the standard: a changed form must turn lists off, never let a wrong one
// pass.
func selfTest() error {
	zeros := make([]byte, goBlockSize)
	for _, v := range []struct {
		block []byte
		after string
	}{
		{zeros, zeroBlockState},
		{bytes.Repeat([]byte{'a'}, goBlockSize), letterBlockState},
	} {
		h, ok := sha256.New().(resumable)
		if !ok {
			return ErrUnavailable
		}
		s, err := stateOf(h)
		if err != nil {
			return err
		}
		if s != initial {
			return fmt.Errorf("%w (first state differs)", ErrUnavailable)
		}
		_, _ = h.Write(v.block)
		if s, err = stateOf(h); err != nil {
			return err
		}
		if hex.EncodeToString(s[:]) != v.after {
			return fmt.Errorf("%w (state after one block differs)", ErrUnavailable)
		}
		// Going on from the raw state must give what one run gives.
		g, err := at(s, goBlockSize)
		if err != nil {
			return err
		}
		_, _ = g.Write([]byte("portolan"))
		want := sha256.Sum256(append(append([]byte{}, v.block...), "portolan"...))
		if !bytes.Equal(g.Sum(nil), want[:]) {
			return fmt.Errorf("%w (a continued hash differs)", ErrUnavailable)
		}
	}
	return nil
}

// Chain states after one block, computed from the standard's definition by a
// program that shares no code with Go's.
const (
	zeroBlockState   = "da5698be17b9b46962335799779fbeca8ce5d491c0d26243bafef9ea1837a9d8" // 64 zero bytes
	letterBlockState = "df5bb81ce81e0626fb45a8944fd40f31b25e6816d6d499c1ab90492900635e66" // 64 times 'a'
)

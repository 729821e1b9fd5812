package units

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"sync"

	"github.com/opencontainers/go-digest"
)

// algorithm is a hash function whose chain this package knows.
type algorithm struct {
	name  digest.Algorithm
	code  byte // in binary forms; further ones are appended, numbers never change
	size  int  // bytes of a chain state and of the digest
	block int  // bytes that one step of the chain takes
	// new makes the hash of this build: that which package crypto knows, as for
	// digests in the rest of the process.
	new func() hash.Hash

	// initial is the state before the first byte (FIPS 180-4, 5.3).
	initial []byte
	// magic begins the form that the toolchain marshals to: magic, state, pending
	// block, length as u64.
	magic string
	// vectors are chain states after one block, see selfTest.
	vectors []vector

	tested func() error // the self test, run once
}

type vector struct {
	fill  byte   // the block is this byte, again and again
	after string // the state after it, in hexadecimal digits
}

const (
	maxState = sha512.Size
	// maxMarshaled is the longest form that the toolchain marshals to.
	maxMarshaled = 4 + maxState + sha512.BlockSize + 8
)

// The vectors were computed from the standard's definition by programs that
// share no code with Go's.
var (
	sha256Chain = newAlgorithm(algorithm{
		name: digest.SHA256, code: 1, size: sha256.Size, block: sha256.BlockSize, new: crypto.SHA256.New, magic: "sha\x03",
		initial: unhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19"),
		vectors: []vector{
			{0, "da5698be17b9b46962335799779fbeca8ce5d491c0d26243bafef9ea1837a9d8"},
			{'a', "df5bb81ce81e0626fb45a8944fd40f31b25e6816d6d499c1ab90492900635e66"},
		},
	})
	sha512Chain = newAlgorithm(algorithm{
		name: digest.SHA512, code: 2, size: sha512.Size, block: sha512.BlockSize, new: crypto.SHA512.New, magic: "sha\x07",
		initial: unhex("6a09e667f3bcc908bb67ae8584caa73b3c6ef372fe94f82ba54ff53a5f1d36f1" +
			"510e527fade682d19b05688c2b3e6c1f1f83d9abfb41bd6b5be0cd19137e2179"),
		vectors: []vector{
			{0, "cf7881d5774acbe8533362e0fbc780700267639d87460eda3086cb40e85931b0" +
				"717dc95288a023a396bab2c14ce0b5e06fc4fe04eae33e0b91f4d80cbd668bee"},
			{'a', "03bf7c6e55c11b040d48757f45285fdced46689bfc9026c0281701a1424c80f5" +
				"ca31738befe6afee30f5fe8d4e41e2489379d57c74895af44b1e84ebc1bab8b0"},
		},
	})
)

func newAlgorithm(a algorithm) *algorithm {
	a.tested = sync.OnceValue(a.selfTest)
	return &a
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // a constant of this file
	}
	return b
}

// algorithmOf gives what is known of an algorithm; nil: nothing.
func algorithmOf(name digest.Algorithm) *algorithm {
	switch name {
	case digest.SHA256:
		return sha256Chain
	case digest.SHA512:
		return sha512Chain
	default:
		return nil
	}
}

// Algorithms are those whose digests name blobs here, the canonical one first.
func Algorithms() []digest.Algorithm { return []digest.Algorithm{digest.SHA256, digest.SHA512} }

// StateSize is the length in bytes of a raw chain state of alg, 0 for one that
// is not supported.
func StateSize(alg digest.Algorithm) int {
	if a := algorithmOf(alg); a != nil {
		return a.size
	}
	return 0
}

// ErrUnavailable says that this toolchain's hash does not give its states in the
// known form; blobs are then checked by whole digest alone.
var ErrUnavailable = errors.New("this build's hash does not give its inner states: blobs are checked whole")

// resumable is what the toolchain's hashes give besides hash.Hash.
type resumable interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// chain is a hash whose chain state can be read and set.
type chain struct {
	resumable
	alg *algorithm
	buf [maxMarshaled]byte // for the marshaled form: no state costs an allocation
}

// begin gives the chain before the first byte.
func (a *algorithm) begin() (*chain, error) {
	h, ok := a.new().(resumable)
	if !ok {
		return nil, fmt.Errorf("%w (%s)", ErrUnavailable, a.name)
	}
	return &chain{resumable: h, alg: a}, nil
}

// at gives the chain that continues from state s after length bytes. The length
// is always the caller's own knowledge and a multiple of the block size.
func (a *algorithm) at(s []byte, length int64) (*chain, error) {
	c, err := a.begin()
	if err != nil {
		return nil, err
	}
	if len(s) != a.size {
		return nil, fmt.Errorf("state of %d bytes for %s", len(s), a.name)
	}
	b := append(c.buf[:0], a.magic...)
	b = append(b, s...)
	b = b[:len(b)+a.block] // nothing is pending: zeros
	b = binary.BigEndian.AppendUint64(b, uint64(length))
	if err := c.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("%w (%s: %w)", ErrUnavailable, a.name, err)
	}
	return c, nil
}

// state reads the chain state, which must stand at a block border. What it gives
// is good until the next call.
func (c *chain) state() ([]byte, error) {
	b, err := c.AppendBinary(c.buf[:0])
	head := len(c.alg.magic)
	if err != nil || len(b) != head+c.alg.size+c.alg.block+8 || string(b[:head]) != c.alg.magic {
		return nil, fmt.Errorf("%w (%s)", ErrUnavailable, c.alg.name)
	}
	return b[head : head+c.alg.size], nil
}

// Available runs the self test of an algorithm once and says whether unit lists
// can be made and checked by this build.
func Available(alg digest.Algorithm) error {
	a := algorithmOf(alg)
	if a == nil {
		return fmt.Errorf("%w (got %s)", ErrUnsupportedDigest, alg)
	}
	return a.available()
}

// available says whether the hash that there is now gives its states, in the
// form that the self test has found to be the known one.
func (a *algorithm) available() error {
	if _, err := a.begin(); err != nil {
		return err
	}
	return a.tested()
}

// selfTest compares the toolchain's states with values computed independently
// from the standard: a changed form must turn lists off, never let a wrong one
// pass.
func (a *algorithm) selfTest() error {
	for _, v := range a.vectors {
		c, err := a.begin()
		if err != nil {
			return err
		}
		s, err := c.state()
		if err != nil {
			return err
		}
		if !bytes.Equal(s, a.initial) {
			return fmt.Errorf("%w (%s: first state differs)", ErrUnavailable, a.name)
		}
		block := bytes.Repeat([]byte{v.fill}, a.block)
		_, _ = c.Write(block)
		if s, err = c.state(); err != nil {
			return err
		}
		if hex.EncodeToString(s) != v.after {
			return fmt.Errorf("%w (%s: state after one block differs)", ErrUnavailable, a.name)
		}
		// Going on from the raw state must give what one run gives.
		g, err := a.at(s, int64(a.block))
		if err != nil {
			return err
		}
		_, _ = g.Write([]byte("portolan"))
		want := a.new()
		_, _ = want.Write(append(block, "portolan"...))
		if !bytes.Equal(g.Sum(nil), want.Sum(nil)) {
			return fmt.Errorf("%w (%s: a continued hash differs)", ErrUnavailable, a.name)
		}
	}
	return nil
}

// Package secrets is how the mesh keeps what not everybody may read in a state
// that everybody copies: keys in boxes, one for each node, and values sealed
// with the mesh key.
//
// A box is HPKE to a node's box key (see node/identity); its info names the
// mesh, the key, its version and the node, so that none can be put in another's
// place.
//
// A sealed value, format 1:
//
//	byte 0       format, 1
//	bytes 1..4   version of the mesh key, big endian
//	then         nonce (12), ciphertext, tag (16): AES-256-GCM
//
// What is authenticated beside it: the five bytes before, and the Place. A value
// that is moved to another object or field does not open. Nonces are random: one
// key seals fewer than 2^32 values (a rotation makes a new one).
//
// The package keeps nothing. Who holds which key is in consensus/state; the node
// that opens boxes and seals is in consensus.
package secrets

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"github.com/portolan/portolan/node/identity"
)

// Key is a key that the mesh shares: of gossip, or the mesh key. It is never
// printed.
type Key [32]byte

// NewKey makes a random key.
func NewKey() Key {
	var k Key
	_, _ = rand.Read(k[:]) // crypto/rand.Read never fails (Go 1.24)
	return k
}

// String implements fmt.Stringer: never the key; so do the three below.
func (Key) String() string             { return "(secret)" }
func (Key) GoString() string           { return "(secret)" }
func (Key) LogValue() slog.Value       { return slog.StringValue("(secret)") }
func (Key) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("(secret)")) }

// Label says what is in a box, and for whom.
type Label struct {
	Mesh    identity.MeshID
	Kind    uint32 // command.KeyKind
	Version uint32
	Node    identity.NodeID
}

const boxContext = "portolan key box v1\x00"

func (l Label) info() []byte {
	b := append([]byte(boxContext), l.Mesh[:]...)
	b = binary.BigEndian.AppendUint32(b, l.Kind)
	b = binary.BigEndian.AppendUint32(b, l.Version)
	return append(b, l.Node[:]...)
}

// Box encrypts key to the node that the label names. boxKey must be signed by
// that node.
func Box(l Label, boxKey [32]byte, signature []byte, key Key) ([]byte, error) {
	if err := identity.VerifyBoxKey(l.Node, boxKey[:], signature); err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	return identity.SealBox(boxKey, l.info(), key[:])
}

// OpenBox decrypts a box that is for id; the label's Node is set by it.
func OpenBox(id *identity.Identity, l Label, box []byte) (Key, error) {
	l.Node = id.ID
	b, err := id.OpenBox(l.info(), box)
	if err != nil {
		return Key{}, err
	}
	if len(b) != len(Key{}) {
		return Key{}, fmt.Errorf("secrets: a box holds %d bytes: expected %d", len(b), len(Key{}))
	}
	return Key(b), nil
}

// Place is where a sealed value belongs.
type Place struct {
	Object string // "ldap", "upstream/12": an id that is never used again
	Field  string // "bind_password"
}

func (p Place) String() string { return p.Object + " " + p.Field }

const (
	sealFormat  = 1
	headerBytes = 5
	// Overhead is what sealing adds to a value's length.
	Overhead = headerBytes + 12 + 16

	sealContext = "portolan sealed value v1\x00"
)

// ErrSealed is wrapped by all errors of Open: the value is damaged, was sealed
// for another place, or its key is not known here.
var ErrSealed = errors.New("secrets: the sealed value does not open")

// KeyVersion tells which version of the mesh key a value was sealed with.
func KeyVersion(sealed []byte) (uint32, error) {
	if len(sealed) < Overhead {
		return 0, fmt.Errorf("%w: it has %d bytes", ErrSealed, len(sealed))
	}
	if sealed[0] != sealFormat {
		return 0, fmt.Errorf("%w: it is of format %d, which this version of portolan does not know", ErrSealed, sealed[0])
	}
	return binary.BigEndian.Uint32(sealed[1:headerBytes]), nil
}

// Seal encrypts value for its place, with this version of the mesh key.
func Seal(key Key, version uint32, p Place, value []byte) ([]byte, error) {
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint32([]byte{sealFormat}, version)
	return aead.Seal(head, nil, value, p.data(head)), nil
}

// Open decrypts what Seal made for the same place. key gives a version of the
// mesh key.
func Open(key func(version uint32) (Key, bool), p Place, sealed []byte) ([]byte, error) {
	version, err := KeyVersion(sealed)
	if err != nil {
		return nil, err
	}
	k, ok := key(version)
	if !ok {
		return nil, fmt.Errorf("%w: this node has not got version %d of the mesh key", ErrSealed, version)
	}
	aead, err := gcm(k)
	if err != nil {
		return nil, err
	}
	value, err := aead.Open(nil, nil, sealed[headerBytes:], p.data(sealed[:headerBytes]))
	if err != nil {
		return nil, fmt.Errorf("%w: it is damaged, or was sealed for another place than %s", ErrSealed, p)
	}
	return value, nil
}

func gcm(key Key) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	return aead, nil
}

// data is what is authenticated beside the value. Lengths keep an object's end
// from being a field's beginning.
func (p Place) data(head []byte) []byte {
	b := append([]byte(sealContext), head...)
	for _, s := range []string{p.Object, p.Field} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

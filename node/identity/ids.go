package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/google/uuid"
	"github.com/mr-tron/base58"
)

// peerIDPrefix is what libp2p puts before the 32 key bytes of an ed25519 peer
// ID: an identity multihash (0x00) of 36 (0x24) bytes, which are the protobuf
// PublicKey{Type: Ed25519, Data: 32 bytes}.
var peerIDPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// NodeID is a node's ed25519 public key.
type NodeID [ed25519.PublicKeySize]byte

// ParseNodeID reads the form that String writes ("12D3KooW…").
func ParseNodeID(s string) (NodeID, error) {
	var id NodeID
	b, err := base58.Decode(s)
	if err != nil || len(b) != len(peerIDPrefix)+len(id) || string(b[:len(peerIDPrefix)]) != string(peerIDPrefix) {
		return id, fmt.Errorf("%q is not a node ID: expected the form 12D3KooW…", s)
	}
	copy(id[:], b[len(peerIDPrefix):])
	return id, nil
}

// NodeIDFromBytes takes the raw 32 key bytes.
func NodeIDFromBytes(b []byte) (NodeID, error) {
	var id NodeID
	if len(b) != len(id) {
		return id, fmt.Errorf("node ID of %d bytes: expected %d", len(b), len(id))
	}
	copy(id[:], b)
	return id, nil
}

// String gives the libp2p peer ID of the key.
func (id NodeID) String() string {
	if id.IsZero() {
		return ""
	}
	return base58.Encode(append(append(make([]byte, 0, 38), peerIDPrefix...), id[:]...))
}

// Short is the last eight characters of String: for people, never for lookups.
func (id NodeID) Short() string {
	s := id.String()
	if len(s) <= 8 {
		return s
	}
	return s[len(s)-8:]
}

// PublicKey gives the key that verifies the node's signatures.
func (id NodeID) PublicKey() ed25519.PublicKey { return ed25519.PublicKey(id[:]) }

// IsZero reports whether id names no node.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// LogValue implements slog.LogValuer.
func (id NodeID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// MarshalText implements encoding.TextMarshaler.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; empty text is the zero ID.
func (id *NodeID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = NodeID{}
		return nil
	}
	v, err := ParseNodeID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// MeshID, StoreID and ProjectID are 128 random bits each. Distinct types keep
// one from being passed for another.
type (
	// MeshID names a mesh; made when its first node starts.
	MeshID [16]byte
	// StoreID names a disk or bucket; made when it is first used.
	StoreID [16]byte
	// ProjectID names a project for ever; its human name lives only in raft.
	ProjectID [16]byte
)

func newID() [16]byte { return uuid.New() }

func parseID(kind, s string) ([16]byte, error) {
	u, err := uuid.Parse(s)
	if err != nil {
		return [16]byte{}, fmt.Errorf("%q is not a %s ID: expected a UUID", s, kind)
	}
	return u, nil
}

func idFromBytes(kind string, b []byte) ([16]byte, error) {
	if len(b) != 16 {
		return [16]byte{}, fmt.Errorf("%s ID of %d bytes: expected 16", kind, len(b))
	}
	return [16]byte(b), nil
}

// NewMeshID makes a random MeshID.
func NewMeshID() MeshID { return newID() }

// ParseMeshID reads the UUID form.
func ParseMeshID(s string) (MeshID, error) { v, err := parseID("mesh", s); return v, err }

// MeshIDFromBytes takes 16 raw bytes.
func MeshIDFromBytes(b []byte) (MeshID, error) { v, err := idFromBytes("mesh", b); return v, err }

func (id MeshID) String() string               { return uuid.UUID(id).String() }
func (id MeshID) IsZero() bool                 { return id == MeshID{} }
func (id MeshID) LogValue() slog.Value         { return slog.StringValue(id.String()) }
func (id MeshID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }
func (id *MeshID) UnmarshalText(b []byte) error {
	v, err := ParseMeshID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// NewStoreID makes a random StoreID.
func NewStoreID() StoreID { return newID() }

// ParseStoreID reads the UUID form.
func ParseStoreID(s string) (StoreID, error) { v, err := parseID("store", s); return v, err }

// StoreIDFromBytes takes 16 raw bytes.
func StoreIDFromBytes(b []byte) (StoreID, error) { v, err := idFromBytes("store", b); return v, err }

func (id StoreID) String() string               { return uuid.UUID(id).String() }
func (id StoreID) IsZero() bool                 { return id == StoreID{} }
func (id StoreID) LogValue() slog.Value         { return slog.StringValue(id.String()) }
func (id StoreID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }
func (id *StoreID) UnmarshalText(b []byte) error {
	v, err := ParseStoreID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// NewProjectID makes a random ProjectID.
func NewProjectID() ProjectID { return newID() }

// ParseProjectID reads the UUID form.
func ParseProjectID(s string) (ProjectID, error) { v, err := parseID("project", s); return v, err }

// ProjectIDFromBytes takes 16 raw bytes.
func ProjectIDFromBytes(b []byte) (ProjectID, error) {
	v, err := idFromBytes("project", b)
	return v, err
}

func (id ProjectID) String() string               { return uuid.UUID(id).String() }
func (id ProjectID) IsZero() bool                 { return id == ProjectID{} }
func (id ProjectID) LogValue() slog.Value         { return slog.StringValue(id.String()) }
func (id ProjectID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }
func (id *ProjectID) UnmarshalText(b []byte) error {
	v, err := ParseProjectID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// Incarnation is the first half of a dot (catalogue.md): 64 random bits, new at
// the first write after every process start, so that a disk that was put back
// to an older state can never give the same dot to two writes. Zero is reserved
// for projects with strong tags.
type Incarnation uint64

// NewIncarnation makes a random, non-zero Incarnation.
func NewIncarnation() Incarnation {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24)
		if n := Incarnation(binary.BigEndian.Uint64(b[:])); n != 0 {
			return n
		}
	}
}

func (i Incarnation) String() string { return strconv.FormatUint(uint64(i), 16) }

// ErrNoIdentity is returned by Load when the directory has no key.
var ErrNoIdentity = errors.New("no node key")

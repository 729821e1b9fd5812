package units

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Signer signs with a node's key.
type Signer interface {
	Sign(msg []byte) []byte
}

// Record says what a blob's unit list is. It is signed by a node that verified
// the whole blob: the one that took it in, or any member later. Two records of
// one digest with different roots are an alarm: one signer lied or is broken.
type Record struct {
	Digest    digest.Digest
	Size      int64    // bytes of the blob
	UnitSize  int64    // always UnitSizeFor(Size)
	Root      [32]byte // List.Root
	Signer    identity.NodeID
	Signature [ed25519.SignatureSize]byte // over the fields above
}

// Sign makes the record of a list that id's holder has verified itself.
func Sign(l *List, id identity.NodeID, s Signer) (Record, error) {
	r := Record{Digest: l.Digest, Size: l.Size, UnitSize: l.UnitSize, Signer: id}
	if err := r.check(); err != nil {
		return Record{}, err
	}
	r.Root = l.Root()
	sig := s.Sign(r.message())
	if len(sig) != len(r.Signature) {
		return Record{}, fmt.Errorf("sign the record of %s: signature of %d bytes", l.Digest, len(sig))
	}
	copy(r.Signature[:], sig)
	return r, nil
}

// signContext separates this signature from every other use of a node's key.
const signContext = "portolan blob record 1\n"

func (r Record) message() []byte {
	b := append([]byte(signContext), make([]byte, 0, maxRecordSize)...)
	b = appendSubject(b, r.Digest, r.Size, r.UnitSize)
	b = append(b, r.Root[:]...)
	return append(b, r.Signer[:]...)
}

// check refuses a record whose fields no honest node can have written.
func (r Record) check() error {
	if err := CheckDigest(r.Digest); err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	if r.Size < 0 || r.Size > MaxSize {
		return fmt.Errorf("%w: size %d of %s", ErrBadRecord, r.Size, r.Digest)
	}
	if r.UnitSize != UnitSizeFor(r.Size) {
		return fmt.Errorf("%w: unit size %d for %d bytes of %s", ErrBadRecord, r.UnitSize, r.Size, r.Digest)
	}
	return nil
}

// Verify checks the record's form and signature. Whether the signer is a member
// of the mesh is the caller's question.
func (r Record) Verify() error {
	if err := r.check(); err != nil {
		return err
	}
	if !ed25519.Verify(r.Signer.PublicKey(), r.message(), r.Signature[:]) {
		return fmt.Errorf("%w: signature on %s is not by %s", ErrBadRecord, r.Digest, r.Signer)
	}
	return nil
}

// Matches says whether l is the list that r names.
func (r Record) Matches(l *List) error {
	if l.Digest != r.Digest || l.Size != r.Size || l.UnitSize != r.UnitSize || l.Root() != r.Root {
		return fmt.Errorf("%w: %s", ErrBadList, r.Digest)
	}
	return nil
}

// recordVersion is the first byte of a record's binary form. Version 1: the
// algorithm (1 sha256, 2 sha512), digest of that algorithm's length, size, unit
// size, root, signer, signature.
const (
	recordVersion = 1
	maxRecordSize = 1 + 1 + maxState + 8 + 8 + 32 + ed25519.PublicKeySize + ed25519.SignatureSize
)

// recordSize is the exact length of a record about a digest of this algorithm.
func recordSize(a *algorithm) int {
	return 1 + subjectSize(a) + 32 + ed25519.PublicKeySize + ed25519.SignatureSize
}

// MarshalBinary gives the form that ParseRecord reads: for rows and the wire.
func (r Record) MarshalBinary() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, maxRecordSize)
	b = append(b, recordVersion)
	b = appendSubject(b, r.Digest, r.Size, r.UnitSize)
	b = append(b, r.Root[:]...)
	b = append(b, r.Signer[:]...)
	return append(b, r.Signature[:]...), nil
}

// ParseRecord reads a record and refuses trailing bytes and unknown versions.
// It does not check the signature.
func ParseRecord(b []byte) (Record, error) {
	var a *algorithm
	if len(b) > 2 && b[0] == recordVersion {
		a = algorithmByCode(b[1])
	}
	if a == nil || len(b) != recordSize(a) {
		return Record{}, fmt.Errorf("%w: %d bytes of an unknown form", ErrBadRecord, len(b))
	}
	b = b[2:]
	r := Record{Digest: digest.NewDigestFromBytes(a.name, b[:a.size])}
	b = b[a.size:]
	r.Size = int64(binary.BigEndian.Uint64(b))
	r.UnitSize = int64(binary.BigEndian.Uint64(b[8:]))
	b = b[16:]
	r.Root = [32]byte(b)
	r.Signer = identity.NodeID(b[32:64])
	r.Signature = [ed25519.SignatureSize]byte(b[64:])
	if err := r.check(); err != nil {
		return Record{}, err
	}
	return r, nil
}

func algorithmByCode(code byte) *algorithm {
	switch code {
	case sha256Chain.code:
		return sha256Chain
	case sha512Chain.code:
		return sha512Chain
	default:
		return nil
	}
}

// raw gives the bytes of a digest of this algorithm, and zeros for anything
// else.
func (a *algorithm) raw(d digest.Digest) []byte {
	_, hexed, _ := strings.Cut(string(d), ":")
	b, err := hex.DecodeString(hexed)
	if err != nil || len(b) != a.size {
		return make([]byte, a.size)
	}
	return b
}

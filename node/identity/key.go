package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// KeyFile is the name of the key file in a node's data directory.
//
// Format: two PEM blocks "PRIVATE KEY" (PKCS #8), first the ed25519 key, then
// the X25519 key. Readers refuse anything else, so a later format can be told
// from damage by its block types.
const KeyFile = "identity.key"

const (
	pemType = "PRIVATE KEY"
	// keyFileMaxBytes bounds what is read: the real file has about 240 bytes.
	keyFileMaxBytes = 16 << 10
	// boxKeyContext separates signatures over box keys from all others made
	// with the same identity.
	boxKeyContext = "portolan box key v1\x00"
)

// certNotAfter is RFC 5280's "no well-defined expiration date": peers pin the
// key and never judge the certificate's dates.
var certNotAfter = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)

// Identity is a node's key pair for signing and for TLS, and its key pair for
// receiving sealed secrets. It never changes after it was loaded.
type Identity struct {
	// ID is the node's name: the public half of the signing key.
	ID NodeID

	key    ed25519.PrivateKey
	box    *ecdh.PrivateKey
	boxSig []byte
}

// LoadOrCreate reads the key of the data directory dir, or makes one there.
// created tells which. The key is durable before LoadOrCreate returns, so a
// node never introduces itself by a key that a power cut can take away.
func LoadOrCreate(dir string) (id *Identity, created bool, err error) {
	id, err = Load(dir)
	if err == nil || !errors.Is(err, ErrNoIdentity) {
		return id, false, err
	}
	id, err = generate()
	if err != nil {
		return nil, false, err
	}
	if err := id.save(dir); err != nil {
		return nil, false, err
	}
	return id, true, nil
}

// Load reads the key of the data directory dir. It returns an error that wraps
// [ErrNoIdentity] if there is none.
func Load(dir string) (*Identity, error) {
	path := filepath.Join(dir, KeyFile)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNoIdentity, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the node key: %w", err)
	}
	if st.Size() > keyFileMaxBytes {
		return nil, fmt.Errorf("node key %s is damaged (%d bytes): restore it from a backup, or join again as a new node", path, st.Size())
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("node key %s can be read by others (mode %#o): run chmod 600 on it", path, st.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the node key: %w", err)
	}
	id, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("node key %s is damaged (%w): restore it from a backup, or join again as a new node", path, err)
	}
	return id, nil
}

func generate() (*Identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a node key: %w", err)
	}
	box, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a box key: %w", err)
	}
	return newIdentity(key, box), nil
}

func newIdentity(key ed25519.PrivateKey, box *ecdh.PrivateKey) *Identity {
	id := &Identity{ID: NodeID(key.Public().(ed25519.PublicKey)), key: key, box: box}
	id.boxSig = id.Sign(append([]byte(boxKeyContext), box.PublicKey().Bytes()...))
	return id
}

func parse(b []byte) (*Identity, error) {
	var keys []any
	for range 2 {
		var blk *pem.Block
		blk, b = pem.Decode(b)
		if blk == nil || blk.Type != pemType {
			return nil, errors.New("expected two PEM blocks PRIVATE KEY")
		}
		k, err := x509.ParsePKCS8PrivateKey(blk.Bytes)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	key, ok := keys[0].(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("the first key is not ed25519")
	}
	box, ok := keys[1].(*ecdh.PrivateKey)
	if !ok || box.Curve() != ecdh.X25519() {
		return nil, errors.New("the second key is not X25519")
	}
	return newIdentity(key, box), nil
}

// save writes the key file by temporary file, fsync, rename and fsync of the
// directory: a crash leaves the whole key or none.
func (id *Identity) save(dir string) (err error) {
	var b []byte
	for _, k := range []any{id.key, id.box} {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return fmt.Errorf("encode the node key: %w", err)
		}
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})...)
	}
	if err := MakeDir(dir); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.CreateTemp(dir, KeyFile+".tmp-*") // 0600
	if err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	// Promise: the name shows a whole key.
	if err = f.Sync(); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	if err = f.Close(); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	// Link, not rename: of two processes that start on one new directory only
	// one may win, and the other must see that it lost.
	if err = os.Link(f.Name(), filepath.Join(dir, KeyFile)); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	_ = os.Remove(f.Name())
	// Promise: a node that has said its name is the same one after a power cut.
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	return nil
}

// MakeDir makes a data directory and its parents, unless it is there. Promise: what is
// kept in a new data directory is found after a power cut.
func MakeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MakeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Sign signs msg. Callers begin msg with a context string of their own that
// ends in a zero byte, so that no signature can be used for another purpose.
func (id *Identity) Sign(msg []byte) []byte { return ed25519.Sign(id.key, msg) }

// PrivateKey gives the signing key for libraries that ask for it (libp2p, JWT).
func (id *Identity) PrivateKey() ed25519.PrivateKey { return id.key }

// BoxKey gives the X25519 public key that secrets for this node are sealed to,
// and the node's signature over it. See [VerifyBoxKey].
func (id *Identity) BoxKey() (pub [32]byte, signature []byte) {
	return [32]byte(id.box.PublicKey().Bytes()), append([]byte(nil), id.boxSig...)
}

// VerifyBoxKey checks that node named pub as its box key.
func VerifyBoxKey(node NodeID, pub, signature []byte) error {
	if len(pub) != 32 {
		return fmt.Errorf("box key of %d bytes: expected 32", len(pub))
	}
	if node.IsZero() || !ed25519.Verify(node.PublicKey(), append([]byte(boxKeyContext), pub...), signature) {
		return fmt.Errorf("the box key of node %s is not signed by it", node)
	}
	return nil
}

// TLSCertificate makes the self-signed certificate that the node shows on its
// control port. Peers look at its key alone (see [NodeIDFromCertificate]); the
// dates are there for tools, and start a day before now.
func (id *Identity) TLSCertificate(now func() time.Time) tls.Certificate {
	tmpl := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: id.ID.String()},
		NotBefore:             now().Add(-24 * time.Hour),
		NotAfter:              certNotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, id.key.Public(), id.key)
	if err != nil {
		// Fixed template, own key: only a broken build can get here.
		panic(fmt.Sprintf("identity: make a certificate: %v", err))
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: id.key}
}

// NodeIDFromCertificate reads the node's name from its certificate. The TLS
// handshake has proved that the peer owns the key; nothing else in the
// certificate is believed.
func NodeIDFromCertificate(cert *x509.Certificate) (NodeID, error) {
	if cert == nil {
		return NodeID{}, errors.New("no certificate")
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return NodeID{}, fmt.Errorf("certificate with a key of type %s: expected Ed25519", cert.PublicKeyAlgorithm)
	}
	return NodeIDFromBytes(pub)
}

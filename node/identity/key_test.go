package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLoadOrCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node")
	if _, err := Load(dir); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("Load of a new directory: %v, want ErrNoIdentity", err)
	}
	a, created, err := LoadOrCreate(dir)
	if err != nil || !created {
		t.Fatalf("first LoadOrCreate: created %v, err %v", created, err)
	}
	b, created, err := LoadOrCreate(dir)
	if err != nil || created {
		t.Fatalf("second LoadOrCreate: created %v, err %v", created, err)
	}
	if a.ID != b.ID || !a.PrivateKey().Equal(b.PrivateKey()) {
		t.Fatal("the key changed between two loads")
	}
	pa, _ := a.BoxKey()
	pb, _ := b.BoxKey()
	if pa != pb {
		t.Fatal("the box key changed between two loads")
	}
	st, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("key file: mode %v, err %v, want 0600", st.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp-*")); len(left) > 0 {
		t.Fatalf("temporary files left: %v", left)
	}
}

func TestLoadOrCreate_OneWinner(t *testing.T) {
	dir := t.TempDir()
	ids := make(chan NodeID, 8)
	var wg sync.WaitGroup
	for range cap(ids) {
		wg.Go(func() {
			id, created, err := LoadOrCreate(dir)
			if err == nil && created {
				ids <- id.ID
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Fatalf("%d callers made a key, want 1", len(ids))
	}
	got, err := Load(dir)
	if err != nil || got.ID != <-ids {
		t.Fatalf("the key on disk is not the winner's (err %v)", err)
	}
}

func TestLoad_Refuses(t *testing.T) {
	good, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := good.save(dir); err != nil {
		t.Fatal(err)
	}
	pem, _ := os.ReadFile(filepath.Join(dir, KeyFile))
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"an empty file":          {"", 0o600, "damaged"},
		"garbage":                {"hello", 0o600, "damaged"},
		"half a file":            {string(pem[:len(pem)/2]), 0o600, "damaged"},
		"a huge file":            {strings.Repeat("x", keyFileMaxBytes+1), 0o600, "damaged"},
		"a key others may read":  {string(pem), 0o640, "chmod 600"},
		"two signing keys alike": {string(pem[:strings.Index(string(pem[10:]), "-----BEGIN")+10]) + string(pem), 0o600, "not X25519"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, KeyFile)
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("err %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestBoxKey(t *testing.T) {
	a, _ := generate()
	b, _ := generate()
	pub, sig := a.BoxKey()
	if err := VerifyBoxKey(a.ID, pub[:], sig); err != nil {
		t.Fatal(err)
	}
	other, _ := b.BoxKey()
	for name, err := range map[string]error{
		"another node":      VerifyBoxKey(b.ID, pub[:], sig),
		"another key":       VerifyBoxKey(a.ID, other[:], sig),
		"a short key":       VerifyBoxKey(a.ID, pub[:31], sig),
		"a short signature": VerifyBoxKey(a.ID, pub[:], sig[:10]),
		"no node":           VerifyBoxKey(NodeID{}, pub[:], sig),
		"no context":        VerifyBoxKey(a.ID, pub[:], a.Sign(pub[:])),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestTLSCertificate(t *testing.T) {
	id, _ := generate()
	at := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	crt := id.TLSCertificate(func() time.Time { return at })
	leaf, err := x509.ParseCertificate(crt.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := NodeIDFromCertificate(leaf); err != nil || got != id.ID {
		t.Fatalf("node %v, err %v, want %v", got, err, id.ID)
	}
	if !leaf.NotBefore.Before(at) || !leaf.NotAfter.After(at.AddDate(100, 0, 0)) {
		t.Fatalf("valid from %v to %v, made at %v", leaf.NotBefore, leaf.NotAfter, at)
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if _, err := NodeIDFromCertificate(&x509.Certificate{PublicKey: ec.Public(), PublicKeyAlgorithm: x509.ECDSA}); err == nil {
		t.Fatal("an ECDSA certificate was accepted")
	}
	if _, err := NodeIDFromCertificate(nil); err == nil {
		t.Fatal("no certificate was accepted")
	}
}

func TestNodeID_Text(t *testing.T) {
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	id := NodeID(pub)
	if !strings.HasPrefix(id.String(), "12D3KooW") {
		t.Fatalf("%s is not in libp2p's form", id)
	}
	back, err := ParseNodeID(id.String())
	if err != nil || back != id {
		t.Fatalf("%v, %v", back, err)
	}
}

func FuzzParse(f *testing.F) {
	id, _ := generate()
	dir := f.TempDir()
	if err := id.save(dir); err != nil {
		f.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(dir, KeyFile))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := parse(b); err == nil && id.ID.IsZero() {
			t.Fatal("a key without a name")
		}
	})
}

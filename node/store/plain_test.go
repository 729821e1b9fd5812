package store

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

// plain gives the process a hash that tells nobody its states for alg, as another
// toolchain may, until the test ends. Nothing else may hash meanwhile.
func plain(t *testing.T, alg digest.Algorithm) {
	t.Helper()
	h, real := crypto.SHA256, sha256.New
	if alg == digest.SHA512 {
		h, real = crypto.SHA512, sha512.New
	}
	crypto.RegisterHash(h, func() hash.Hash { return struct{ hash.Hash }{real()} })
	t.Cleanup(func() { crypto.RegisterHash(h, real) })
	if err := units.Available(alg); !errors.Is(err, units.ErrUnavailable) {
		t.Fatalf("%s is still to be had with its states: %v", alg, err)
	}
}

// A build whose hash does not give its states serves what others have stored with
// lists, takes in more, and holds nothing against what it cannot check.
func TestPlainDigestMode(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		dir := t.TempDir()
		s := openAt(t, dir, time.Now)
		old, half := content(1, 3<<20), content(2, 3<<20)
		if _, err := s.PutContent(t.Context(), alg.FromBytes(old), old, link); err != nil {
			t.Fatal(err)
		}
		u := upload(t, s)
		if err := u.Expect(alg); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), bytes.NewReader(half[:2<<20])); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)

		plain(t, alg)
		s = openAt(t, dir, time.Now) // nothing is known to be checked
		defer closeStore(t, s)
		got := func(want []byte) {
			t.Helper()
			if b, err := read(t, s, alg.FromBytes(want)); err != nil || !bytes.Equal(b, want) {
				t.Fatalf("read %d of %d bytes: %v", len(b), len(want), err)
			}
		}
		got(old)

		u, err := s.Upload(t.Context(), u.ID())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), bytes.NewReader(half[2<<20:])); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Commit(t.Context(), alg.FromBytes(half), link); err != nil {
			t.Fatal(err)
		}
		got(half)
		if _, _, err := s.Record(t.Context(), alg.FromBytes(half)); !errors.Is(err, ErrNoRecord) {
			t.Fatal(err)
		}
		for i, size := range []int{InlineMax, InlineMax + 1, 1 << 20} {
			b := content(byte(10+i), size)
			if err := s.PutFetched(t.Context(), identity.ProjectID{}, alg.FromBytes(b), b, Cached); err != nil {
				t.Fatal(err)
			}
			got(b)
			row, err := s.row(alg.FromBytes(b))
			if err != nil || row.Class != Cached {
				t.Fatalf("class %v: %v", row.Class, err)
			}
			if _, leased, err := s.Catalog().Linked(link.PID, link.Repo, row.Digest); err != nil || leased {
				t.Fatalf("a fetched blob is leased: %v, %v", leased, err)
			}
		}
	})
}

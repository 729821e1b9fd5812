package store

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

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

		defer units.Withhold(alg)()
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
			if err := s.PutFetched(t.Context(), alg.FromBytes(b), b, Cached); err != nil {
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

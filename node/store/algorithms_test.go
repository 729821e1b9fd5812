package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

// each runs a test for every algorithm.
func each(t *testing.T, f func(t *testing.T, alg digest.Algorithm)) {
	t.Helper()
	for _, alg := range units.Algorithms() {
		t.Run(alg.String(), func(t *testing.T) { f(t, alg) })
	}
}

// hasRead gives the bytes that this process has read by system calls, from the
// page cache included.
func hasRead(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("this system does not count what a process reads")
	}
	_, rest, _ := strings.Cut(string(b), "rchar: ")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// An algorithm that is known before the first byte costs no reading; one that is
// named only at the end costs reading the staged file once. The unit list is
// there in each case without a further read.
func TestUpload_ReadsAgainOnlyForAnAlgorithmNamedAtTheEnd(t *testing.T) {
	const size = 8<<20 + 333
	each(t, func(t *testing.T, alg digest.Algorithm) {
		other := digest.SHA512
		if alg == digest.SHA512 {
			other = digest.SHA256
		}
		for name, tc := range map[string]struct {
			expect digest.Algorithm // "": nothing is said at the beginning
			before int              // bytes sent before the request that ends it
			reads  int              // times that the file is read
		}{
			"all at once":                     {"", 0, 0},
			"said, then all at once":          {alg, 0, 0},
			"another said, then all at once":  {other, 0, 0},
			"said, then in pieces":            {alg, size / 2, 0},
			"said, ended by an empty request": {alg, size, 0},
			"another said, then in pieces":    {other, size / 2, 1},
			"another said, ended by empty":    {other, size, 1},
		} {
			t.Run(name, func(t *testing.T) {
				s := newStore(t)
				b := content(1, size)
				u := upload(t, s)
				if tc.expect != "" {
					if err := u.Expect(tc.expect); err != nil {
						t.Fatal(err)
					}
				}
				if tc.before > 0 {
					if _, err := u.Append(t.Context(), bytes.NewReader(b[:tc.before])); err != nil {
						t.Fatal(err)
					}
				}
				began := hasRead(t)
				if _, err := u.Finish(t.Context(), bytes.NewReader(b[tc.before:]), alg.FromBytes(b), link); err != nil {
					t.Fatal(err)
				}
				if _, _, err := s.Record(t.Context(), alg.FromBytes(b)); err != nil {
					t.Fatal(err)
				}
				// Small files and the runtime's own reads are what the rest is.
				if n := hasRead(t) - began; n/size != int64(tc.reads) {
					t.Fatalf("%d bytes were read, want %d times %d", n, tc.reads, size)
				}
				holdsAs(t, s, alg, b)
				tidy(t, s)
			})
		}
	})
}

// What another algorithm at the end must not change: the digest is proven, the
// upload's end is its end, and small content stays a row.
func TestUpload_AlgorithmNamedAtTheEnd(t *testing.T) {
	s := newStore(t)
	for _, size := range sizes {
		b := content(3, size)
		for _, alg := range []digest.Algorithm{digest.SHA512, digest.SHA256} {
			u := upload(t, s)
			if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			if _, err := u.Commit(t.Context(), digest.SHA384.FromBytes(b), link); !errors.Is(err, ErrUnsupportedDigest) {
				t.Fatal(err)
			}
			// Refused for its algorithm it is still there.
			if _, err := u.Commit(t.Context(), alg.FromBytes(b), link); err != nil {
				t.Fatal(err)
			}
			holdsAs(t, s, alg, b)

			u = upload(t, s)
			if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			if _, err := u.Commit(t.Context(), alg.FromString("something else"), link); !errors.Is(err, ErrDigestMismatch) {
				t.Fatal(err)
			}
			if _, err := s.Upload(t.Context(), u.ID()); !errors.Is(err, ErrNotFound) {
				t.Fatalf("an upload of other bytes goes on: %v", err)
			}
		}
	}
	u := upload(t, s)
	for _, bad := range []digest.Algorithm{"", "sha384", "sha512 ", "SHA512", "md5"} {
		if err := u.Expect(bad); !errors.Is(err, ErrUnsupportedDigest) {
			t.Errorf("expect %q: %v", bad, err)
		}
	}
	if err := u.Cancel(); err != nil {
		t.Fatal(err)
	}
	tidy(t, s)
}

// One content under two digests is two blobs: neither needs the other.
func TestTwoDigestsOfOneContent_AreTwoBlobs(t *testing.T) {
	s := newStore(t)
	for i, size := range sizes {
		b := content(byte(i), size)
		long, short := digest.SHA512.FromBytes(b), digest.SHA256.FromBytes(b)
		for _, d := range []digest.Digest{long, short} {
			if err := s.PutFetched(t.Context(), identity.ProjectID{}, d, b, Cached); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Collect(t.Context(), short); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context(), short); !errors.Is(err, ErrNotFound) {
			t.Fatalf("collected: %v", err)
		}
		holdsAs(t, s, digest.SHA512, b)
	}
	tidy(t, s)
}

// A list that is lost is made anew by one read, and a damaged unit is found, for
// each algorithm.
func TestListAndChecks_OfEachAlgorithm(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		dir := t.TempDir()
		b := content(9, int(3*units.Unit)+17)
		d := alg.FromBytes(b)
		s := openAt(t, dir, time.Now)
		if err := s.PutFetched(t.Context(), identity.ProjectID{}, d, b, Placed); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(fileOf(s, "units", d)); err != nil {
			t.Fatal(err)
		}
		holdsAs(t, s, alg, b)
		if st, err := os.Stat(fileOf(s, "units", d)); err != nil || st.Size() != int64(units.ListBytes(alg, int64(len(b)))) {
			t.Fatalf("the list was not made anew: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		f, err := os.OpenFile(fileOf(s, "blobs", d), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{b[units.Unit+5] ^ 1}, units.Unit+5)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		s = openAt(t, dir, time.Now) // what was checked before is forgotten
		defer func() { _ = s.Close() }()
		blob, err := s.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = blob.Close() }()
		got, err := io.ReadAll(blob)
		if !errors.Is(err, ErrCorrupt) || !bytes.Equal(got, b[:units.Unit]) {
			t.Fatalf("read %d bytes: %v", len(got), err)
		}
		if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatalf("the damaged blob is still there: %v", err)
		}
	})
}

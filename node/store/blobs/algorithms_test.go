package blobs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/smalldisk"
)

// each runs a test for every algorithm.
func each(t *testing.T, f func(t *testing.T, alg digest.Algorithm)) {
	t.Helper()
	for _, alg := range units.Algorithms() {
		t.Run(alg.String(), func(t *testing.T) { f(t, alg) })
	}
}

// expect begins u under alg, as a client that names it with the first request.
func expect(t testing.TB, u *Upload, alg digest.Algorithm) {
	t.Helper()
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	if err := u.Expect(alg, true); err != nil {
		t.Fatal(err)
	}
}

// Bytes that were hashed by the other algorithm become the right blob with the
// right list, also when a restart came between, and an upload without bytes can
// still change its mind.
func TestUpload_EndsUnderAnotherAlgorithm(t *testing.T) {
	want := content(6, int(2*units.Unit)+99)
	each(t, func(t *testing.T, alg digest.Algorithm) {
		for _, begun := range units.Algorithms() {
			dir := t.TempDir()
			s := open(t, dir)
			u := begin(t, s)
			expect(t, u, begun)
			add(t, u, want[:units.Unit+5])
			expect(t, u, alg) // too late: the bytes stay as they were hashed
			if u.Algorithm() != begun {
				t.Fatalf("hashed by %s, begun with %s", u.Algorithm(), begun)
			}
			s = open(t, dir)
			u, err := s.Upload(u.ID())
			if err != nil {
				t.Fatal(err)
			}
			add(t, u, want[units.Unit+5:])
			installAs(t, s, u, alg, want)

			// Nothing came yet: the file of the first choice is not in the way.
			u = begin(t, s)
			for _, a := range []digest.Algorithm{begun, digest.SHA512, digest.SHA256, alg} {
				expect(t, u, a)
			}
			add(t, u, want[:100])
			s = open(t, dir)
			if u, err = s.Upload(u.ID()); err != nil || u.Offset() != 100 || u.Algorithm() != alg {
				t.Fatalf("offset %d of %s: %v", u.Offset(), u.Algorithm(), err)
			}
			add(t, u, want[100:])
			installAs(t, s, u, alg, want)
		}
	})
}

// A client that leaves while the bytes are read again loses nothing.
func TestUpload_ReadingAgainIsInterrupted(t *testing.T) {
	s := open(t, t.TempDir())
	want := content(6, 400_000)
	u := begin(t, s)
	add(t, u, want)
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.Hashed(ctx, digest.SHA512); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	u.Release()
	installAs(t, s, u, digest.SHA512, want)

	// What never went to a file is hashed again from memory.
	u = begin(t, s)
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), bytes.NewReader(want[:testSmall]), true); err != nil {
		t.Fatal(err)
	}
	if h, err := u.Hashed(t.Context(), digest.SHA512); err != nil || h.Digest() != digest.SHA512.FromBytes(want[:testSmall]) {
		t.Fatalf("in memory: %v", err)
	}
	u.Release()

	// A file that lost bytes meanwhile is no blob.
	u = begin(t, s)
	add(t, u, want)
	if err := os.Truncate(u.path(extData), 399_999); err != nil {
		t.Fatal(err)
	}
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	if _, err := u.Hashed(t.Context(), digest.SHA512); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

// An entry of a checkpoint file that a full disk cuts in half must not hide the
// ones behind it: the offset that is answered later is the one after a restart.
func TestUpload_HalfAnEntryOnAFullDisk(t *testing.T) {
	dir := smalldisk.Mount(t, "1m")
	s := open(t, dir)
	u := begin(t, s)
	want := content(1, 600)
	const page = 4096
	n := 0
	for end := 1; end+entryHead+entryTail <= page; end += entryHead + entryTail {
		add(t, u, want[n:n+1])
		n++
	}
	// The next entry crosses a page, and there is no further page; the next byte of
	// data has room in its own.
	filler := s.path("filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), filePerm); err == nil {
		t.Fatal("the small disk took more than it has")
	}
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	_, err := u.Append(t.Context(), bytes.NewReader(want[n:n+1]), false)
	u.Release()
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a full disk: %v", err)
	}
	if u.Offset() != int64(n) {
		t.Fatalf("offset %d, want %d", u.Offset(), n)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	add(t, u, want[n:n+100])
	s = open(t, dir)
	back, err := s.Upload(u.ID())
	if err != nil || back.Offset() != int64(n+100) {
		t.Fatalf("offset %d after a restart, %d was answered: %v", back.Offset(), n+100, err)
	}
	add(t, back, want[n+100:])
	install(t, s, back, want)
}

func FuzzParseEntries(f *testing.F) {
	for _, alg := range units.Algorithms() {
		h := units.NewHasher(alg)
		_, _ = h.Write(content(1, int(2*units.Unit)))
		f.Add(appendEntry(appendEntry(nil, alg, 10, nil), alg, 2*units.Unit, h.States()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, alg := range units.Algorithms() {
			off, states, sound := parseEntries(alg, b)
			n, odd := int64(len(states)/units.StateSize(alg)), len(states)%units.StateSize(alg)
			if off < 0 || sound > len(b) || odd != 0 || n*units.Unit > off {
				t.Fatalf("offset %d, %d states, %d of %d bytes", off, n, sound, len(b))
			}
			again, _, s2 := parseEntries(alg, b[:sound])
			if again != off || s2 != sound {
				t.Fatal("the sound part reads differently")
			}
		}
	})
}

package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
)

// uneven gives content in pieces of many sizes, and breaks off behind the byte
// at breaks if that is not beyond the end.
type uneven struct {
	rest   []byte
	breaks int
	rand   *rand.Rand
}

var errBroken = errors.New("the connection broke")

func (u *uneven) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		return 0, io.EOF
	}
	if u.breaks == 0 {
		return 0, errBroken
	}
	n := min(len(p), len(u.rest), u.breaks, 1+u.rand.IntN([]int{7, 5 << 10, 300 << 10}[u.rand.IntN(3)]))
	copy(p, u.rest[:n])
	u.rest, u.breaks = u.rest[n:], u.breaks-n
	return n, nil
}

// TestCopier breaks connections and fills disks in the middle of appends, with
// and without a second processor to hash on: file and hash always say the same.
func TestCopier(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	for _, procs := range []int{1, 4} {
		runtime.GOMAXPROCS(procs)
		for seed := range uint64(12) {
			t.Run(fmt.Sprintf("%d processors, seed %d", procs, seed), func(t *testing.T) { copyInPieces(t, seed) })
		}
	}
}

func copyInPieces(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	h := openHall(t, 10, 10)
	until := -1 // pieces until the disk is full, below 0: it never is
	h.cfg.Space = func(int64) error {
		if until == 0 {
			return ErrNoSpace
		}
		until--
		return nil
	}
	h.restart(t)
	h.every = 1 << 20 // so that appends meet checkpoints
	content := make([]byte, 2<<20+rnd.IntN(4<<20))
	for i := range content {
		content[i] = byte(rnd.Uint32())
	}
	up := h.begin(t, "ann")
	if err := up.Acquire(); err != nil {
		t.Fatal(err)
	}
	defer up.Release()
	for up.Size() < int64(len(content)) {
		at := up.Size()
		r := &uneven{rest: content[at:], breaks: rnd.IntN(3 << 20), rand: rnd}
		until = -1
		if rnd.IntN(3) == 0 {
			until = rnd.IntN(6)
		}
		n, err := up.Append(context.Background(), r, false)
		switch {
		case errors.Is(err, ErrNoSpace):
			if n != 0 || up.Size() != at {
				t.Fatalf("a full disk took %d bytes, and the upload went from %d to %d: nothing may be kept", n, at, up.Size())
			}
		case err != nil && !errors.Is(err, errBroken):
			t.Fatal(err)
		case up.Size() != at+n:
			t.Fatalf("%d bytes were taken at %d, but the upload is at %d", n, at, up.Size())
		}
		if up.Offset() != up.Size() {
			t.Fatalf("%d of %d bytes are durable after an append", up.Offset(), up.Size())
		}
		got, err := os.ReadFile(up.path(extData))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if !bytes.Equal(got, content[:up.Size()]) {
			t.Fatalf("the file does not have the first %d bytes", up.Size())
		}
		if got, want := up.hasher.Digest(), digest.FromBytes(content[:up.Size()]); got != want {
			t.Fatalf("the hash of %d bytes is %s instead of %s", up.Size(), got, want)
		}
	}
}

// TestCopier_Ends has a sync fail, and content become too large, while a piece is
// being hashed.
func TestCopier_Ends(t *testing.T) {
	before := runtime.GOMAXPROCS(4)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	content := make([]byte, 5<<20)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	begin := func(t *testing.T) (*hall, *Upload) {
		h := openHall(t, 10, 10)
		h.cfg.MaxUpload = 4 << 20
		h.restart(t)
		h.every = 1 << 20
		u := h.begin(t, "ann")
		if err := u.Acquire(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(u.Release)
		return h, u
	}
	t.Run("a sync fails", func(t *testing.T) {
		h, u := begin(t)
		left := 2
		h.sync = func(f *os.File) error {
			if left--; left < 0 {
				return errBroken
			}
			return syncData(f)
		}
		if n, err := u.Append(context.Background(), bytes.NewReader(content[:4<<20]), false); n != 0 || !errors.Is(err, errBroken) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if !u.gone || h.files(t) != 0 {
			t.Errorf("an upload whose sync failed goes on, with %d files", h.files(t))
		}
	})
	t.Run("too large", func(t *testing.T) {
		_, u := begin(t)
		if n, err := u.Append(context.Background(), bytes.NewReader(content[:1000]), false); n != 1000 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if n, err := u.Append(context.Background(), bytes.NewReader(content[1000:]), false); n != 0 || !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if u.Size() != 1000 || u.Offset() != 1000 || u.hasher.Digest() != digest.FromBytes(content[:1000]) {
			t.Errorf("the upload is at %d, %d of it durable, %s", u.Size(), u.Offset(), u.hasher.Digest())
		}
	})
}

package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// flip changes one byte of a blob's file, as a bad disk or a hand does.
func flip(t *testing.T, s *Store, d digest.Digest, off int64) {
	t.Helper()
	f, err := os.OpenFile(fileOf(s, "blobs", d), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	b[0] ^= 1
	if err == nil {
		_, err = f.WriteAt(b, off)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Wrong bytes are never read: neither after a restart nor while the file is
// known. Then the blob is gone, and comes again.
func TestFlippedBytes_AreNeverRead(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, time.Now)
	defer func() { _ = s.Close() }()
	want := content(1, int(3*units.Unit)+100)
	d := put(t, s, want)
	for name, restart := range map[string]bool{"known file": false, "after a restart": true} {
		for _, at := range []int64{0, units.Unit + 17, int64(len(want)) - 1} {
			flip(t, s, d, at)
			if restart {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openAt(t, dir, time.Now)
			}
			b, err := s.Open(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if b.File() != nil {
				t.Fatalf("%s: the file is given out without a check", name)
			}
			got, err := io.ReadAll(b)
			if !errors.Is(err, ErrCorrupt) || !bytes.Equal(got, want[:at/units.Unit*units.Unit]) {
				t.Fatalf("%s, flipped at %d: read %d bytes, %v", name, at, len(got), err)
			}
			if _, err := b.ReadAt(make([]byte, 10), at); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("a second read of it: %v", err)
			}
			_ = b.Close()
			if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			feed, err := s.Catalog().Feed(0, 100)
			if err != nil || feed[len(feed)-1].State != catalog.Gone {
				t.Fatalf("the other sites do not hear of it: %v, %v", feed, err)
			}
			put(t, s, want)
			holds(t, s, want)
		}
	}
}

// A check is believed for a while only.
func TestCheck_IsDoneAgain(t *testing.T) {
	now := time.Now()
	s := openAt(t, t.TempDir(), func() time.Time { return now })
	defer func() { _ = s.Close() }()
	want := content(1, int(units.Unit)+1)
	d := put(t, s, want)
	checked := func() bool {
		t.Helper()
		b, err := s.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		return b.File() != nil
	}
	if !checked() {
		t.Error("a blob that was hashed as it came is hashed again")
	}
	now = now.Add(checkedFor)
	if checked() {
		t.Error("a check is believed for ever")
	}
	holds(t, s, want)
	if !checked() {
		t.Error("a blob that was read is checked again")
	}
}

// Many readers of one blob that is not checked share the work; one that reads a
// range waits for that range alone.
// Bytes that were staged before a restart may have rotted since: nobody is served
// from them unchecked.
func TestCheck_WhatWasStagedBeforeARestart(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, time.Now)
	b := content(1, 3<<20)
	u := upload(t, s)
	if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	staged, err := os.OpenFile(filepath.Join(dir, "store", "uploads", u.ID()+".data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.WriteAt([]byte{b[100] ^ 1}, 100); err != nil {
		t.Fatal(err)
	}
	if err := staged.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, time.Now)
	defer closeStore(t, s)
	if u, err = s.Upload(t.Context(), u.ID()); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(b)
	if _, err := u.Commit(t.Context(), d, link); err != nil {
		t.Fatal(err) // the hash was noted before
	}
	if _, err := read(t, s, d); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("rotten bytes are served: %v", err)
	}
}

func TestCheck_ManyReaders(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, time.Now)
	want := content(1, int(5*units.Unit)+100)
	d := put(t, s, want)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, time.Now)
	defer func() { _ = s.Close() }()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			b, err := s.Open(t.Context(), d)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = b.Close() }()
			from := int64(i) * 200_000
			if _, err := b.Seek(from, io.SeekStart); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, want[from:]) {
				t.Errorf("reader %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	holds(t, s, want)
}

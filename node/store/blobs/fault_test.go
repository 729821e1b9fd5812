package blobs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/faultfs"
)

// survives gives path on the disk that f is after a power cut now.
func survives(t *testing.T, f *faultfs.FS, path string) error {
	t.Helper()
	dir, unmount := faultfs.New(f.Crash(f.Len(), 0)).MountT(t)
	defer unmount()
	_, err := os.Stat(filepath.Join(dir, path))
	return err
}

// A directory whose sync failed is there, with a name that a power cut takes:
// whoever uses it next has to sync it, also beside others that are durable.
func TestDirs_AfterAFailedSync(t *testing.T) {
	faultfs.Require(t)
	f := faultfs.New(faultfs.Empty())
	dir, unmount := f.MountT(t)
	defer unmount()
	k := newDirs(filepath.Join(dir, "store"))
	one, two := filepath.Join(dir, "store", "blobs", "aa"), filepath.Join(dir, "store", "blobs", "ab")
	if err := k.keep(one); err != nil {
		t.Fatal(err)
	}
	f.Fail(faultfs.Fault{Kind: faultfs.SyncDir, Nth: 1, Errno: syscall.EIO})
	if err := k.keep(two); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a directory that was not synced is kept: %v", err)
	}
	if _, err := os.Stat(two); err != nil {
		t.Fatalf("the fault came before the directory: %v", err)
	}
	if err := survives(t, f, "store/blobs/ab"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the disk keeps what was not synced: %v", err)
	}
	if err := k.keep(two); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"store/blobs/aa", "store/blobs/ab"} {
		if err := survives(t, f, path); err != nil {
			t.Errorf("a power cut takes a directory that is used: %v", err)
		}
	}
}

// A note that is there, of an attempt that could not sync it, is no note before
// it is synced; and what it speaks of stays for the sweep.
func TestDoubts_AfterAFailedSync(t *testing.T) {
	faultfs.Require(t)
	f := faultfs.New(faultfs.Empty())
	dir, unmount := f.MountT(t)
	defer unmount()
	if err := newDirs(dir).keep(filepath.Join(dir, dirDoubtful)); err != nil {
		t.Fatal(err)
	}
	n, d := newDoubts(dir, time.Now), digest.FromString("blob")
	note := filepath.Join(dirDoubtful, stem(d))
	f.Fail(faultfs.Fault{Kind: faultfs.SyncDir, Nth: 1, Errno: syscall.EIO})
	if err := n.begin(d); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a note that was not synced is one: %v", err)
	}
	if err := survives(t, f, note); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the disk keeps what was not synced: %v", err)
	}
	if err := n.begin(d); err != nil {
		t.Fatal(err)
	}
	if err := survives(t, f, note); err != nil {
		t.Errorf("a power cut takes the note of a blob that is sent: %v", err)
	}
	n.settle(d)
	if _, err := os.Stat(filepath.Join(dir, note)); err != nil {
		t.Errorf("the first attempt may have left something, and its note is gone: %v", err)
	}
	if err := n.done(d); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, note)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sweep's note is still there: %v", err)
	}
}

// A question that the disk does not answer says nothing of a blob: it must not
// look as if the file was gone, or of another size.
func TestHas_NoAnswer(t *testing.T) {
	h := openHall(t, 1, 0)
	b := content(1, 100_000)
	d := digest.FromBytes(b)
	path := h.disk.blobPath(d)
	// Even root is refused what lies below a file.
	if err := os.WriteFile(filepath.Dir(path), nil, filePerm); err != nil {
		t.Fatal(err)
	}
	if has, err := h.Has(t.Context(), d, int64(len(b))); err == nil || has || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		t.Errorf("has: %t, %v", has, err)
	}
	if f, err := h.Open(d, int64(len(b))); err == nil || errors.Is(err, ErrCorrupt) {
		if err == nil {
			_ = f.Close()
		}
		t.Errorf("open: %v", err)
	}
	if err := os.Remove(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	is(t, h.Store, d, int64(len(b)), false)
}

// What a commit has taken away itself since the sweep looked is no error, and the
// rest goes.
func TestSweep_BesideACommit(t *testing.T) {
	h := openHall(t, 1, 0)
	d := digest.FromString("blob")
	id := begin(t, h.Store).ID() // has no file yet
	h.restart(t)
	for ext, text := range map[string]string{extCommit: d.String(), extList: "list", extCkpt: ""} {
		if err := os.WriteFile(filepath.Join(h.cfg.Dir, "uploads", id+ext), []byte(text), filePerm); err != nil {
			t.Fatal(err)
		}
	}
	did, err := h.Sweep(t.Context(), Keep{Uploads: time.Hour, Partials: time.Hour, Quarantine: time.Hour}, func(of digest.Digest, _ func() error) error {
		if of != d {
			t.Errorf("asked for %s", of)
		}
		return os.Remove(filepath.Join(h.cfg.Dir, "uploads", id+extCommit))
	})
	if err != nil || did.Orphans != 1 {
		t.Errorf("%+v, %v", did, err)
	}
	if left, err := os.ReadDir(filepath.Join(h.cfg.Dir, "uploads")); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// The sweep asks a bucket that is away once, not once a note, and its next run
// takes up all that was left.
func TestSweep_AsksAnAbsentBucketOnce(t *testing.T) {
	h := openHall(t, 1, 0)
	h.cfg.Backend, h.cfg.StoreID = &Backend{Driver: inmemory.New(), Part: 1 << 20}, "one"
	h.restart(t)
	if err := h.Prove(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	const notes = 5
	for i := range notes {
		if err := h.Quarantine(digest.FromBytes([]byte{byte(i)})); err != nil {
			t.Fatal(err)
		}
		if err := h.objects.notes.begin(digest.FromBytes([]byte{byte(100 + i)})); err != nil {
			t.Fatal(err)
		}
	}
	h.now = h.now.Add(2 * time.Hour)
	keep := Keep{Uploads: time.Hour, Partials: time.Hour, Quarantine: time.Hour}
	asked := 0
	away := func(digest.Digest, func() error) error {
		asked++
		return &Unavailable{Place: "a bucket", Cause: "no answer"}
	}
	did, err := h.Sweep(t.Context(), keep, away)
	if !errors.Is(err, ErrUnavailable) || did != (Swept{}) || asked != 2 {
		t.Errorf("%+v after %d questions (one for each kind of notes): %v", did, asked, err)
	}
	did, err = h.Sweep(context.Background(), keep, func(_ digest.Digest, also func() error) error {
		if also != nil {
			return also()
		}
		return nil
	})
	if err != nil || did.Quarantined != notes || did.Orphans != notes {
		t.Errorf("%+v, %v", did, err)
	}
}

// What a bucket refuses for one object holds up none of the others, and one that
// refuses everything is not asked for all.
func TestSweep_OneRefusalHoldsUpNobody(t *testing.T) {
	h := openHall(t, 1, 0)
	h.cfg.Backend, h.cfg.StoreID = &Backend{Driver: inmemory.New(), Part: 1 << 20}, "one"
	h.restart(t)
	if err := h.Prove(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	const notes = 3 * maxRefusals
	held := digest.FromBytes([]byte("held"))
	for i := range notes {
		d := digest.FromBytes([]byte{byte(i)})
		if i == 0 {
			d = held
		}
		if err := errors.Join(h.Quarantine(d), h.objects.notes.begin(d)); err != nil {
			t.Fatal(err)
		}
	}
	h.now = h.now.Add(2 * time.Hour)
	keep := Keep{Uploads: time.Hour, Partials: time.Hour, Quarantine: time.Hour}
	no := &Unavailable{Place: "a bucket", Cause: "under a hold", Refused: true}

	asked := 0
	did, err := h.Sweep(t.Context(), keep, func(digest.Digest, func() error) error {
		asked++
		return no
	})
	if !errors.Is(err, ErrUnavailable) || did != (Swept{}) || asked != 2*maxRefusals {
		t.Errorf("%+v after %d questions: %v", did, asked, err)
	}
	did, err = h.Sweep(t.Context(), keep, func(d digest.Digest, also func() error) error {
		switch {
		case d == held:
			return no
		case also != nil:
			return also()
		}
		return nil
	})
	if !errors.Is(err, ErrUnavailable) || did.Quarantined != notes-1 || did.Orphans != notes-1 {
		t.Errorf("%+v, %v", did, err)
	}
}

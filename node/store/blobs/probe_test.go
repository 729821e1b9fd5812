package blobs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/smalldisk"
)

// files are all below a directory.
func files(t testing.TB, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// probeIsGone: there is nothing of a probe on the disk or in the bucket.
func probeIsGone(t testing.TB, s *Store) {
	t.Helper()
	for _, path := range []string{s.probeStaged(), s.probeFinal()} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if s.objects == nil {
		return
	}
	var none storagedriver.PathNotFoundError
	if _, err := s.objects.Driver.GetContent(t.Context(), s.objects.probeKey()); !errors.As(err, &none) {
		t.Errorf("the object is left: %v", err)
	}
}

func TestProbe_LeavesNothing(t *testing.T) {
	eachPlace(t, func(t *testing.T, reopen func() *Store) {
		s := reopen()
		u := begin(t, s)
		add(t, u, content(1, 1<<20))
		before := files(t, s.Dir())
		for range 2 {
			if err := s.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if after := files(t, s.Dir()); !slices.Equal(before, after) {
			t.Errorf("%v before, %v after", before, after)
		}
		probeIsGone(t, s)
	})
}

// TestProbe_LeftByACrash: what a crash leaves of a probe is no upload and no blob,
// the next probe does not mind it, and a sweep removes it.
func TestProbe_LeftByACrash(t *testing.T) {
	eachPlace(t, func(t *testing.T, reopen func() *Store) {
		s := reopen()
		crash := func() {
			t.Helper()
			if err := os.WriteFile(s.probeStaged(), []byte("half"), filePerm); err != nil {
				t.Fatal(err)
			}
			if s.objects != nil {
				if err := s.objects.Driver.PutContent(t.Context(), s.objects.probeKey(), []byte("half")); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(s.probeFinal(), []byte("half"), filePerm); err != nil {
				t.Fatal(err)
			}
		}
		crash()
		if err := s.Probe(t.Context()); err != nil {
			t.Error(err)
		}
		probeIsGone(t, s)
		crash()
		s = reopen()
		if s.nUploads != 0 {
			t.Errorf("%d uploads", s.nUploads)
		}
		crash() // a start may have removed the object
		did, err := s.Sweep(t.Context(), Keep{Uploads: time.Hour, Partials: time.Hour, Quarantine: time.Hour}, func(d digest.Digest, _ func() error) error {
			t.Errorf("%s is taken for a blob", d)
			return nil
		})
		if err != nil || did != (Swept{}) {
			t.Errorf("%+v, %v", did, err)
		}
		probeIsGone(t, s)
	})
}

// TestProbe_SweptMeanwhile: a sweep leaves a probe alone that runs.
func TestProbe_SweptMeanwhile(t *testing.T) {
	eachPlace(t, func(t *testing.T, reopen func() *Store) {
		s := reopen()
		syncs := s.sync
		s.sync = func(f *os.File) error {
			if _, err := s.Sweep(t.Context(), Keep{}, nil); err != nil {
				t.Error(err)
			}
			return syncs(f)
		}
		if err := s.Probe(t.Context()); err != nil {
			t.Error(err)
		}
		// One at a time: another waits, and no longer than it may.
		s.sync = func(*os.File) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return s.Probe(ctx)
		}
		if err := s.Probe(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		s.sync = syncs
		if err := s.Probe(t.Context()); err != nil {
			t.Error(err)
		}
		probeIsGone(t, s)
	})
}

// TestProbe_Disk: one that is full, one that does not keep what it takes, and one
// that is read-only.
func TestProbe_Disk(t *testing.T) {
	disk := smalldisk.Mount(t, "4m")
	s, err := Open(Config{Dir: filepath.Join(disk, "store"), Logger: slog.New(slog.DiscardHandler), Now: time.Now, MaxUpload: 1 << 20, MaxUploads: 4, SmallMax: testSmall})
	if err != nil {
		t.Fatal(err)
	}
	well := func() {
		t.Helper()
		if err := s.Probe(t.Context()); err != nil {
			t.Error(err)
		}
		probeIsGone(t, s)
	}
	well()

	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 5<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("5 MiB fit: %v", err)
	}
	if err := s.Probe(t.Context()); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a full disk: %v", err)
	}
	probeIsGone(t, s)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	well()

	syncs := s.sync
	s.sync = func(*os.File) error { return syscall.EIO }
	if err := s.Probe(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Errorf("a sync that fails: %v", err)
	}
	probeIsGone(t, s)
	s.sync = func(f *os.File) error { _, err := f.WriteAt([]byte("rot"), 99); return err }
	if err := s.Probe(t.Context()); !errors.Is(err, errOtherBytes) {
		t.Errorf("other bytes: %v", err)
	}
	s.sync = syncs
	well()

	remount := func(how string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,"+how, disk).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	remount("ro")
	err = s.Probe(t.Context())
	remount("rw")
	if !errors.Is(err, syscall.EROFS) {
		t.Errorf("a disk that is read-only: %v", err)
	}
	well()
}

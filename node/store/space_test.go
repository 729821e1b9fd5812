package store

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/test/smalldisk"
)

func freeBelow(t *testing.T, dir string) int64 {
	t.Helper()
	free, _, err := blobs.Free(dir)
	if err != nil {
		t.Fatal(err)
	}
	return free
}

// fill leaves so many bytes free, whoever uses the others.
func fill(t *testing.T, dir, name string, leave int64) (undo func()) {
	t.Helper()
	path := filepath.Join(dir, name)
	if n := freeBelow(t, dir) - leave; n > 0 {
		if out, err := exec.Command("fallocate", "-l", fmt.Sprint(n), path).CombinedOutput(); err != nil {
			t.Fatalf("fallocate: %s", out)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// noise makes the n-th manifest of 60 KiB that can't be packed.
func noise(n int) catalog.Put {
	b := append(fmt.Appendf(nil, "%d", n), content(byte(n), 60<<10)...)
	p := manifestPut(n)
	p.Digest, p.Bytes, p.Size = digest.FromBytes(b), b, int64(len(b))
	return p
}

// Others may take the whole disk at any time between two commits: what the
// memtable holds has its room, for a close and for the start after a crash.
func TestFullDisk_OthersTakeAll(t *testing.T) {
	const n = 500 // a memtable takes some 530
	begin := func(dir string) *Store {
		s := openAt(t, dir, time.Now)
		for i := range n {
			if _, err := s.Catalog().PutManifest(t.Context(), noise(i)); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	check := func(s *Store) {
		t.Helper()
		for i := range n {
			if got, ok, err := s.Catalog().Content(noise(i).Digest); err != nil || !ok || !bytes.Equal(got, noise(i).Bytes) {
				t.Fatalf("manifest %d: %v, %v", i, ok, err)
			}
		}
		if _, err := s.Catalog().PutManifest(t.Context(), noise(n)); !errors.Is(err, ErrNoSpace) {
			t.Errorf("a manifest more: %v", err)
		}
	}
	again := func(dir string, s *Store) {
		t.Helper()
		check(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "others")); err != nil {
			t.Fatal(err)
		}
		s = openAt(t, dir, time.Now)
		if _, err := s.Catalog().PutManifest(t.Context(), noise(n)); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}

	dir, crashed := smalldisk.Mount(t, "256m"), smalldisk.Mount(t, "256m")
	s := begin(dir)
	// What a power cut would leave.
	if out, err := exec.Command("cp", "-r", "--sparse=always", filepath.Join(dir, "store"), filepath.Join(dir, "identity.key"), crashed).CombinedOutput(); err != nil {
		t.Fatalf("cp: %s", out)
	}
	if out, err := exec.Command("fallocate", "-l", fmt.Sprint(ballastBytes), filepath.Join(crashed, "store", ballastFile)).CombinedOutput(); err != nil {
		t.Fatalf("fallocate: %s", out)
	}
	fill(t, dir, "others", 0)
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A start needs a little for itself.
	if err := os.Remove(filepath.Join(dir, "others")); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, "others", 9<<20)
	again(dir, openAt(t, dir, time.Now))

	fill(t, crashed, "others", 0)
	again(crashed, openAt(t, crashed, time.Now))
}

// manifestPut makes the n-th manifest of 60 KiB.
func manifestPut(n int) catalog.Put {
	b := append(fmt.Appendf(nil, "%d", n), bytes.Repeat([]byte{' '}, 60<<10)...)
	return catalog.Put{
		PID: link.PID, Repo: link.Repo, Digest: digest.FromBytes(b), MediaType: "application/vnd.oci.image.manifest.v1+json",
		Size: int64(len(b)), Bytes: b, Tags: []string{fmt.Sprint("v", n)}, Home: "fra",
	}
}

// On a disk that runs full pushes are refused, reads and deletes go on, also
// after a restart, and when there is space writes do. Without the space that is
// kept free the database would end the process here.
func TestFullDisk(t *testing.T) {
	dir := smalldisk.Mount(t, "256m")
	const kept = 256 << 20 / keptShare
	s := openAt(t, dir, time.Now)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := content(1, 1<<20)
	put(t, s, b)

	// Full for blobs: a push that has its blobs can still end.
	undo := fill(t, dir, "others", kept*keptForBlobs/100)
	if _, err := s.PutBytes(t.Context(), content(2, 1<<20), link); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a blob: %v", err)
	}
	if err := s.PutFetched(t.Context(), identity.ProjectID{}, digest.FromBytes(content(3, 1<<20)), content(3, 1<<20), Placed); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a fetched blob: %v", err)
	}
	n := 0
	for ; ; n++ {
		if _, err := s.Catalog().PutManifest(t.Context(), manifestPut(n)); err != nil {
			if !errors.Is(err, ErrNoSpace) {
				t.Fatal(err)
			}
			t.Logf("manifest %d: %v", n, err)
			break
		}
	}
	if n < 100 {
		t.Errorf("%d manifests fitted", n)
	}

	// Full for everybody.
	fill(t, dir, "more", kept/4)
	check := func() {
		t.Helper()
		holds(t, s, b)
		for i := range n {
			info, err := s.Catalog().Tag(link.PID, link.Repo, fmt.Sprint("v", i))
			if err != nil || info.Digest != manifestPut(i).Digest {
				t.Fatalf("tag %d: %+v, %v", i, info, err)
			}
			if got, ok, err := s.Catalog().Content(info.Digest); err != nil || !ok || digest.FromBytes(got) != info.Digest {
				t.Fatalf("manifest %d: %v, %v", i, ok, err)
			}
		}
	}
	check()
	if _, err := s.Catalog().PutManifest(t.Context(), manifestPut(n)); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, time.Now)
	check()

	if err := os.Remove(filepath.Join(dir, "more")); err != nil {
		t.Fatal(err)
	}
	// Nothing may grow, but what leads to space may be done.
	if err := s.Catalog().DeleteManifest(t.Context(), link.PID, link.Repo, manifestPut(n-1).Digest, "ann", 1); err != nil {
		t.Fatal(err)
	}
	n--
	check()
	undo()
	check()
	for i := n; i < n+50; i++ {
		if _, err := s.Catalog().PutManifest(t.Context(), manifestPut(i)); err != nil {
			t.Fatal(err)
		}
	}
	n += 50
	check()
	put(t, s, content(2, 1<<20))
}

// A reserve with a length and no blocks, as a copy of the directory or a restored
// backup has, sets nothing aside: it is filled.
func TestBallast_Sparse(t *testing.T) {
	s := openAt(t, t.TempDir(), time.Now)
	dir := s.files.Dir()
	closeStore(t, s)
	path := filepath.Join(dir, ballastFile)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	full := allocated(st)
	if full == 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this file system can't set space aside: set TMPDIR to a directory on one that can")
		}
		t.Skip("this file system can't set space aside")
	}
	if err := errors.Join(os.Truncate(path, 0), os.Truncate(path, st.Size())); err != nil {
		t.Fatal(err)
	}
	if st, err = os.Stat(path); err != nil || allocated(st) >= full {
		t.Fatalf("%d bytes on the disk, %v", allocated(st), err)
	}
	again := newSpace(dir, slog.New(slog.DiscardHandler))
	if again.holds() {
		t.Error("a file of holes is taken for space")
	}
	if err := again.hold(0); err != nil {
		t.Fatal(err)
	}
	if st, err = os.Stat(path); err != nil || allocated(st) < full {
		t.Errorf("%d bytes on the disk, %d are to be set aside; %v", allocated(st), full, err)
	}
}

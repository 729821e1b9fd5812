package swarm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/test/smalldisk"
)

// fill has others use the disk until so many bytes are free.
func fill(t *testing.T, dir string, leave int64) (undo func()) {
	t.Helper()
	free, _, err := blobs.Free(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "others")
	if out, err := exec.Command("fallocate", "-l", fmt.Sprint(free-leave), path).CombinedOutput(); err != nil {
		t.Fatalf("fallocate: %s", out)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// hasNothing says that nothing of a blob is to be seen, and that what is on the disk
// of it belongs to the next fetch.
func (n *node) hasNothing(w Want) {
	t := n.lab.t
	t.Helper()
	if _, err := n.store.Stat(t.Context(), w.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
	if b, err := n.store.Open(t.Context(), w.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it can be opened: %v", err)
		_ = b.Close()
	}
	began := n.store.FetchBegan(w.Digest)
	err := filepath.WalkDir(filepath.Join(n.dir, "store"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.Contains(path, w.Digest.Encoded()) && !(began && filepath.Base(filepath.Dir(path)) == "partial") {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// noPartials says that no file of a fetch is left.
func (n *node) noPartials() {
	n.lab.t.Helper()
	left, err := os.ReadDir(filepath.Join(n.dir, "store", "partial"))
	if err != nil || len(left) > 0 {
		n.lab.t.Errorf("files of fetches are left: %v, %v", left, err)
	}
}

// The disk is full before a blob begins, in the middle of it, or when all of it is
// here and is to be stored.
func TestFetch_DiskFull(t *testing.T) {
	for name, at := range map[string]int64{"from the beginning": 0, "in the middle": 4, "at the end": 8} {
		t.Run(name, func(t *testing.T) {
			dir := smalldisk.Mount(t, "512m")
			l := newLab(t)
			a, b := l.start(), l.startIn(dir)
			t.Cleanup(b.stop) // before the disk goes
			data := content(odd)
			w := a.put(data)
			l.held(a)
			g := newGate(at * mib)
			a.bend(&faulty{read: g.read})
			var done <-chan error
			var undo func()
			if at == 0 {
				undo = fill(t, dir, 16*mib)
				done = b.fetching(w)
			} else {
				done = b.fetching(w)
				<-g.reached
				eventually(t, "what may come is here", func() bool { return b.got() == int(at) })
				undo = fill(t, dir, 16*mib)
			}
			g.open(odd)
			if err := <-done; !errors.Is(err, store.ErrNoSpace) {
				t.Fatalf("got %v", err)
			}
			b.hasNothing(w)
			if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, store.ErrNoSpace) {
				t.Fatalf("it is still full: %v", err)
			}
			b.hasNothing(w)
			undo()
			if err := b.swarm.Fetch(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			b.has(data)
			b.noPartials()
		})
	}
}

// Small blobs that come in a batch, which the catalogue keeps.
func TestFetch_DiskFull_Batch(t *testing.T) {
	dir := smalldisk.Mount(t, "512m")
	l := newLab(t)
	a, b := l.start(), l.startIn(dir)
	t.Cleanup(b.stop)
	l.held(a)
	const n = 50
	var all [n][]byte
	var wants [n]Want
	for i := range n {
		all[i] = content(2000 + i)
		wants[i] = a.put(all[i])
	}
	fetch := func() (errs [n]error) {
		var done [n]<-chan error
		for i, w := range wants {
			done[i] = b.fetching(w)
		}
		for i := range done {
			errs[i] = <-done[i]
		}
		return errs
	}
	undo := fill(t, dir, 16*mib)
	for i, err := range fetch() {
		if !errors.Is(err, store.ErrNoSpace) {
			t.Fatalf("got %v", err)
		}
		b.hasNothing(wants[i])
	}
	undo()
	for i, err := range fetch() {
		if err != nil {
			t.Fatal(err)
		}
		b.has(all[i])
	}
	b.noPartials()
}

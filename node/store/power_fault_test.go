package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/faultfs"
)

// scriptFaults pushes while single operations of the disk fail. A request that
// fails says so; the same again works, or says that the node must be restarted;
// what was acknowledged can be read meanwhile.
func scriptFaults(p *powerScript) error {
	acked := map[uint64]int{}
	restart := false
	try := func(seed uint64, size int, push func() error) error {
		for range 3 { // one fault at a time: the third at the latest works
			err := push()
			switch {
			case err == nil && restart:
				return errors.New("a push was acknowledged after the store had said that it must be restarted")
			case err == nil:
				acked[seed] = size
				return nil
			case strings.Contains(err.Error(), "restart the node"):
				restart = true
			case errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrNoSpace):
				return fmt.Errorf("a full disk is not told as one: %w", err)
			}
		}
		if !restart {
			return errors.New("three pushes failed after one fault")
		}
		return nil
	}
	for seed := uint64(51); seed < 60; seed++ {
		size := []int{sizeRow, sizeFile, sizeUnits}[seed%3]
		chunks := [][]int{nil, {10}, {1_200_000}}[seed%3]
		if seed > 55 {
			chunks = nil
		}
		if err := try(seed, size, func() error { return p.put(seed, size, chunks...) }); err != nil {
			return err
		}
	}
	err := try(0, 0, func() error { return p.manifest(60, "tag") })
	delete(acked, 0)
	for seed, size := range acked {
		want := crashContent(seed, size)
		b, oerr := p.Open(p.ctx, digest.FromBytes(want))
		if oerr != nil {
			return errors.Join(err, oerr)
		}
		got, rerr := io.ReadAll(b)
		if rerr := errors.Join(rerr, b.Close()); rerr != nil || !bytes.Equal(got, want) {
			return errors.Join(err, fmt.Errorf("a blob of %d bytes cannot be read: %w", size, rerr))
		}
	}
	return err
}

// TestFailingDisk lets the n-th operation of each kind fail, and looks at what is
// there after a kill and after a power cut.
func TestFailingDisk(t *testing.T) {
	faultfs.Require(t)
	seed := faultfs.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	checker := faultfs.StartWorker(t)
	begin := faultfs.New(faultfs.Empty())
	dir, unmount := begin.MountT(t)
	if err := checker.Do(powerRequest{Script: "new store", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	unmount()
	made := begin.Crash(begin.Len(), 1)

	run := func(t *testing.T, faults ...faultfs.Fault) *faultfs.FS {
		f := faultfs.New(made)
		f.NamedBySync = badgerTables
		for _, fault := range faults {
			f.Fail(fault)
		}
		dir, unmount := f.MountT(t)
		w := faultfs.StartWorker(t)
		err := w.Do(powerRequest{Script: "faults", Dir: dir, Killed: true})
		// Killed, not closed: a broken disk may not let it.
		if kerr := w.Kill(); kerr != nil {
			t.Fatal(kerr)
		}
		w.Wait()
		unmount()
		if err != nil {
			t.Error(err)
		}
		return f
	}
	count := map[faultfs.Kind]int{}
	for _, k := range run(t).Kinds() {
		count[k]++
	}
	per := 4
	if testing.Short() {
		per = 2
	}
	for _, fault := range []faultfs.Fault{
		{Kind: faultfs.Sync, Errno: syscall.EIO}, {Kind: faultfs.SyncDir, Errno: syscall.EIO},
		{Kind: faultfs.Rename, Errno: syscall.EIO}, {Kind: faultfs.Write, Errno: syscall.EIO},
		{Kind: faultfs.Write, Errno: syscall.ENOSPC}, {Kind: faultfs.Create, Errno: syscall.ENOSPC},
	} {
		nths := rng.Perm(count[fault.Kind])
		for _, n := range nths[:min(per, len(nths))] {
			fault.Nth = n + 1
			t.Run(fmt.Sprintf("%s %d of %d fails with %v", fault.Kind, fault.Nth, len(nths), fault.Errno), func(t *testing.T) {
				f := run(t, fault)
				for _, seed := range []uint64{0, 1, rng.Uint64()} {
					err := afterPowerCut(t, checker, faultfs.Crashed{N: f.Len(), Seed: seed, Image: f.Crash(f.Len(), seed), Marks: f.Marks()})
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
				}
			})
			if t.Failed() {
				return
			}
		}
	}
}

package faultfs

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Mount makes the file system visible at dir, a directory that is there.
func (f *FS) Mount(dir string) (unmount func() error, err error) {
	server, err := fuse.NewServer(f, dir, &fuse.MountOptions{
		Name: "faultfs", FsName: "faultfs",
		DirectMountStrict: true, // mount(2): no fusermount is needed
		DisableXAttrs:     true,
		// As a disk does, it keeps in the page cache what was read, whatever its time.
		ExplicitDataCacheControl: true,
		DisableReadDirPlus:       true,
		MaxWrite:                 1 << 20,
		MaxBackground:            64,
		Logger:                   log.New(io.Discard, "", 0), // it is told when a killed process has not waited
	})
	if err != nil {
		return nil, fmt.Errorf("mount faultfs at %s: %w", dir, err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount faultfs at %s: %w", dir, err)
	}
	return func() error {
		if err := server.Unmount(); err != nil {
			// Detached, it is at least no longer in the way of what is to be removed.
			return errors.Join(fmt.Errorf("unmount faultfs at %s: %w", dir, err), syscall.Unmount(dir, syscall.MNT_DETACH))
		}
		return nil
	}, nil
}

// MountT mounts at a directory of the test's own until it ends, or until the
// result is called. All processes that use it must have ended by then.
func (f *FS) MountT(t testing.TB) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	end, err := f.Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := false
	unmount = func() {
		t.Helper()
		if done {
			return
		}
		done = true
		f.Unblock()
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// Require skips a test where FUSE cannot be mounted, and says why. On CI that is
// a failure: a test that never runs proves nothing.
func Require(t testing.TB) {
	t.Helper()
	dir := t.TempDir()
	f := New(Empty())
	end, err := f.Mount(dir)
	if err == nil {
		err = end()
	}
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("FUSE must work on CI (root and /dev/fuse are needed): %v", err)
	default:
		t.Skipf("FUSE does not work here (root and /dev/fuse are needed): %v", err)
	}
}

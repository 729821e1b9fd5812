package clients

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startLimit = 60 * time.Second // until a daemon answers
	stopLimit  = 30 * time.Second // from SIGTERM to SIGKILL
)

// needRoot skips, or fails with CI set, for daemons that mount.
func needRoot(t testing.TB, what string) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("CI") != "":
		t.Fatalf("%s needs root", what)
	default:
		t.Skipf("%s needs root", what)
	}
}

// shortDir makes a directory that goes away with the test. Paths of unix
// sockets are short: daemons do not live below t.TempDir.
func shortDir(t testing.TB, pattern string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Logf("left behind: %v", err)
		}
	})
	return dir
}

// daemon runs a command until the test ends, and waits until ready gives nil.
// mounts are what it may leave mounted below dir.
func daemon(t testing.TB, dir string, ready func() error, mounts []string, cmd *exec.Cmd) {
	t.Helper()
	name := filepath.Base(cmd.Path)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	said := func() []byte {
		b, _ := os.ReadFile(log.Name())
		return tail(b, 4096)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	var ended error
	go func() {
		ended = cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(stopLimit):
			_ = cmd.Process.Kill()
			<-exited
		}
		for _, m := range mounts {
			_ = unix.Unmount(filepath.Join(dir, m), unix.MNT_DETACH)
		}
		if t.Failed() {
			t.Logf("%s said at the end:\n%s", name, said())
		}
		log.Close()
	})
	deadline := time.After(startLimit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-exited:
			t.Fatalf("%s ended: %v\n%s", name, ended, said())
		case <-deadline:
			t.Fatalf("%s did not answer within %s: %v", name, startLimit, err)
		case <-tick.C:
		}
	}
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

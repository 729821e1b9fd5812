package wan

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// runDir holds NAME.lock and NAME.sock of each lab. It goes with a restart of
// the machine, as namespaces do.
const runDir = "/run/wanlab"

// labName has no dash, which ends it in the names of namespaces.
var labName = regexp.MustCompile(`^[a-z0-9]{1,20}$`)

var errInUse = errors.New("a lab of that name is up")

func lockPath(lab string) string   { return filepath.Join(runDir, lab+".lock") }
func socketPath(lab string) string { return filepath.Join(runDir, lab+".sock") }

// claim takes a lab's name, or returns errInUse. The kernel gives it back when
// the process ends, however it ends: who can claim a name may remove what is
// left of the lab.
func claim(lab string) (lock *os.File, err error) {
	if !labName.MatchString(lab) {
		return nil, fmt.Errorf("lab %q: want 1 to 20 of a-z and 0-9", lab)
	}
	err = alone(func() error {
		f, err := os.OpenFile(lockPath(lab), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = errInUse
			}
			return fmt.Errorf("lab %s: %w", lab, err)
		}
		lock = f
		return nil
	})
	return lock, err
}

// release removes all that a claimed lab has or had on this machine, last the
// claim.
func release(lab string, lock *os.File) (notes []string, err error) {
	defer lock.Close()
	notes, err = removeNamespaces(lab)
	if err != nil {
		return notes, err // the lock file stays: the next sweep tries again
	}
	if err := os.Remove(socketPath(lab)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return notes, err
	}
	return notes, alone(func() error {
		err := os.Remove(lockPath(lab))
		lock.Close()
		return err
	})
}

// alone runs f while nobody else opens, locks or removes lock files: otherwise a
// sweep could claim a lab between its open and its lock, and a lab could lock
// a file that has just been removed. f must be short.
func alone(f func() error) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(runDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", runDir, err)
	}
	return f()
}

// Down removes what a lab left behind that has crashed. Notes name processes
// that still run in its sites. A lab that is up is an error.
func Down(lab string) (notes []string, err error) {
	lock, err := claim(lab)
	if err != nil {
		return nil, err
	}
	return release(lab, lock)
}

// sweep removes what all crashed labs left behind.
func sweep() error {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		lab, ok := strings.CutSuffix(e.Name(), ".lock")
		if !ok {
			continue
		}
		if _, down := Down(lab); down != nil && !errors.Is(down, errInUse) {
			err = errors.Join(err, fmt.Errorf("remove what lab %s left: %w", lab, down))
		}
	}
	return err
}

package blobs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncData makes a file's bytes and length durable, leaving out its times.
func syncData(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Free says how many bytes a program may still write below dir, and how large
// its file system is.
func Free(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(dir, &st)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Frsize, int64(st.Blocks) * st.Frsize, nil
}

// Forget has the system drop a file's bytes from memory, so that the next read is
// the disk's word, and so that what is read once takes no memory from others. What
// was not written back yet stays. It is advice: an error changes nothing.
func Forget(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
}

// reserve takes the space for a whole file at once, so that a full disk is known
// before the first byte crosses the WAN.
func reserve(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return f.Truncate(size)
		default:
			return err
		}
	}
}

package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// forget has the system drop a file's bytes from memory, so that the next read is
// the disk's word, and so that what is read once takes no memory from others. What
// was not written back yet stays. It is advice: an error changes nothing.
func forget(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
}

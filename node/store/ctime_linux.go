package store

import (
	"os"
	"syscall"
)

// changedAt is when a file's bytes or attributes last changed: unlike the time
// of the last write, nobody can set it back.
func changedAt(st os.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ctim.Nano()
	}
	return 0
}

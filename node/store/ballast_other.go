//go:build !linux

package store

import "os"

func allocate(f *os.File, size int64) error { return f.Truncate(size) }

func allocated(st os.FileInfo) int64 { return st.Size() }

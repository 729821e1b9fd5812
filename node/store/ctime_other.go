//go:build !linux

package store

import "os"

func changedAt(st os.FileInfo) int64 { return st.ModTime().UnixNano() }

//go:build !linux

package congestion

import (
	"errors"
	"syscall"
)

func read(syscall.RawConn) (counters, error) { return counters{}, errors.ErrUnsupported }
func set(_ syscall.RawConn, _ string) error  { return errors.ErrUnsupported }

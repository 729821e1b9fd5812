package congestion

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// read asks the kernel about a connection.
func read(raw syscall.RawConn) (c counters, err error) {
	cerr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err != nil {
			return
		}
		c.sent, c.resent = uint64(info.Data_segs_out), uint64(info.Total_retrans)
		c.rtt, c.shortest = time.Duration(info.Rtt)*time.Microsecond, time.Duration(info.Min_rtt)*time.Microsecond
		c.algorithm, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	return c, errors.Join(cerr, err)
}

// set gives a connection another algorithm.
func set(raw syscall.RawConn, algorithm string) (err error) {
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, algorithm)
	})
	return errors.Join(cerr, err)
}

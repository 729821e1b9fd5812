package peer

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// kernelReader takes from a socket what is there, and lets the kernel wake the
// reader only when what is missing has come (SO_RCVLOWAT). The kernel wakes it all the
// same when the other side ends, or the socket's buffer can take no more.
type kernelReader struct {
	raw syscall.RawConn // nil: it is no socket
	low int             // as the socket has it; 0: as it was made, which is 1
	// space is the most bytes that were read in one round trip when the kernel was
	// asked last, came what has come since.
	space, came int
	need        int
	in          *[wireBuffer]byte
	n           int
	err         error
	take        func(fd uintptr) bool // k.once: made once, a read costs no allocation
}

func (k *kernelReader) of(c net.Conn) {
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			k.raw, k.take = raw, k.once
		}
	}
}

// there: otherwise the connection itself has to be read from.
func (k *kernelReader) there() bool { return k.raw != nil }

// read waits until need bytes are here, or nothing more comes. It gives a buffer of
// wireBuffers with the first n bytes, and what ended the wait if they are fewer;
// without any the buffer is nil.
func (k *kernelReader) read(need int) (*[wireBuffer]byte, int, error) {
	k.in, k.n, k.err, k.need = nil, 0, nil, need
	if err := k.raw.Read(k.take); err != nil && k.err == nil {
		k.err = err // closed, or its deadline is over
	}
	in := k.in
	k.in = nil
	return in, k.n, k.err
}

// once reports whether it has what was asked for. If not it is called again when the
// socket is readable.
func (k *kernelReader) once(fd uintptr) bool {
	if k.in == nil {
		k.in = wireBuffers.Get().(*[wireBuffer]byte)
	}
	for k.n < k.need {
		n, err := unix.Read(int(fd), k.in[k.n:])
		switch {
		case n > 0:
			k.n += n
			k.came += n
			continue
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			k.give()
			k.wait(int(fd))
			return false
		case err != nil:
			k.err = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", err)}
		default:
			k.err = io.EOF
		}
		k.give()
		return true
	}
	return true
}

// give puts an empty buffer back.
func (k *kernelReader) give() {
	if k.n == 0 && k.in != nil {
		wireBuffers.Put(k.in)
		k.in = nil
	}
}

// lowShare of what comes in a round trip is the most that the kernel is told to wait
// for. It opens the receive window by what is read in a round trip: were that to come
// in a few large steps, the window of a long link would open by a quarter each round
// trip where it can double, for seconds.
const lowShare = 16

// wait tells the kernel how much is missing. Setting it wakes the reader if that came
// meanwhile.
func (k *kernelReader) wait(fd int) {
	if k.space < lowShare*maxLow && k.came >= k.space {
		k.came = 0
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			k.space = int(info.Rcv_space)
		}
	}
	low := max(1, min(k.need-k.n, k.space/lowShare, maxLow))
	if now := max(k.low, 1); now > low || 2*now <= low {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, low) == nil {
			k.low = low
		}
	}
}

package peer

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// lowOf gives how much the kernel waits for, and the most bytes that were read in a
// round trip.
func lowOf(t *testing.T, c *credited) (low, space int) {
	t.Helper()
	err := c.wire.kernel.raw.Control(func(fd uintptr) {
		low, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			space = int(info.Rcv_space)
		}
	})
	if err != nil {
		t.Error(err)
	}
	return low, space
}

// TestWire_SleepsUntilTheFrameIsHere: the kernel is told how much is missing of a
// frame, as far as that is a small part of what comes in a round trip, and of a
// frame's head no more than that.
func TestWire_SleepsUntilTheFrameIsHere(t *testing.T) {
	const head = frameHeader + recordHeader + recordSeal
	from, to, _ := wiredPair(t)
	low := func() int {
		low, _ := lowOf(t, to)
		return low
	}
	frame := dataFrame(make([]byte, MaxFrame))
	read := make(chan error, 1)
	go func() {
		for range 2 {
			_, err := io.ReadFull(to, make([]byte, frameHeader))
			if err == nil {
				_, err = io.ReadFull(to, make([]byte, MaxFrame))
			}
			read <- err
		}
	}()
	eventually(t, "it waits for a head", func() bool { return low() <= head })
	if _, err := from.Conn.Write(frame[:1000]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits for more than a head, and not for too much", func() bool {
		low, space := lowOf(t, to)
		return low > head && low <= min(maxLow, space/lowShare)
	})
	// The rest in pieces that are all shorter.
	for rest := frame[1000:]; len(rest) > 0; {
		n := min(len(rest), 3000)
		if _, err := from.Conn.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits for a head again", func() bool { return low() <= frameHeader+recordHeader+recordSeal })
	if _, err := from.Write(frame); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
}

package peer

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWire_SleepsUntilTheFrameIsHere: the kernel is told how much is missing of a
// frame, and of a frame's head no more than that.
func TestWire_SleepsUntilTheFrameIsHere(t *testing.T) {
	from, to, _ := wiredPair(t)
	low := func() (n int) {
		err := to.wire.kernel.raw.Control(func(fd uintptr) {
			n, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
		})
		if err != nil {
			t.Error(err)
		}
		return n
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
	eventually(t, "it waits for a head", func() bool { return low() <= frameHeader+recordHeader+recordSeal })
	if _, err := from.Conn.Write(frame[:1000]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits for most of a frame", func() bool { return low() == maxLow })
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

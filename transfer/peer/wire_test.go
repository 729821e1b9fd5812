package peer

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	libp2pcrypto "github.com/libp2p/go-libp2p/core/crypto"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

func TestRecords_Need(t *testing.T) {
	record := func(plain int) []byte {
		b := make([]byte, recordHeader+plain+recordSeal)
		b[3], b[4] = byte((plain+recordSeal)>>8), byte(plain+recordSeal)
		return b
	}
	const over = recordHeader + recordSeal
	frame := 4 * (maxPlain + over)
	for _, c := range []struct {
		name  string
		given []byte
		plain int
		want  int
	}{
		{"nothing is known", nil, 0, 1},
		{"a frame's head", nil, frameHeader, frameHeader + over},
		{"a whole frame", nil, 4 * maxPlain, frame},
		{"one byte more is one record more", nil, 4*maxPlain + 1, frame + 1 + over},
		{"part of a header", record(100)[:3], 100, 100 + over - 3},
		{"a header", record(100)[:recordHeader], 100, 100 + recordSeal},
		{"part of a record", record(maxPlain)[:1000], maxPlain, maxPlain + over - 1000},
		{"a whole record", record(maxPlain), 3 * maxPlain, 3 * (maxPlain + over)},
		{"a record of which less is asked for", record(maxPlain)[:1000], 12, maxPlain + over - 1000},
		{"a record that is too short for its seal", []byte{23, 3, 3, 0, 9}, 20, 9 + 20 + over},
	} {
		var whole, bytewise records
		whole.pass(c.given)
		for _, b := range c.given {
			bytewise.pass([]byte{b})
		}
		if got := whole.need(c.plain); got != c.want {
			t.Errorf("%s: %d bytes, want %d", c.name, got, c.want)
		}
		if got := bytewise.need(c.plain); got != c.want {
			t.Errorf("%s, byte by byte: %d bytes, want %d", c.name, got, c.want)
		}
	}
}

// counting counts what the kernel is given.
type counting struct {
	*net.TCPConn
	writes atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(p)
}

// wiredPair is TLS between two sockets, both ends on wires as crediting has them.
func wiredPair(t *testing.T) (from, to *credited, kernel *counting) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	secure := func() (*wired, corepeer.ID) {
		key, _, err := libp2pcrypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, err := corepeer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		w, err := newWired(libp2ptls.ID, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w, id
	}
	near, _ := secure()
	far, farID := secure()
	kernel = &counting{TCPConn: a.(*net.TCPConn)}
	done := make(chan error, 1)
	go func() {
		c, err := far.SecureInbound(t.Context(), b, "")
		if err == nil {
			to = &credited{Conn: c, wire: c.(*wiredConn).wire}
		}
		done <- err
	}()
	c, err := near.SecureOutbound(t.Context(), kernel, farID)
	if err = errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	from = &credited{Conn: c, wire: c.(*wiredConn).wire}
	t.Cleanup(func() { _, _ = from.Close(), to.Close() })
	return from, to, kernel
}

func dataFrame(body []byte) []byte { return append(make([]byte, frameHeader), body...) }

// TestWire_GivesWholeFrames sends frames of many lengths, read as yamux reads them.
func TestWire_GivesWholeFrames(t *testing.T) {
	from, to, _ := wiredPair(t)
	content := make([]byte, 200<<10)
	_, _ = rand.Read(content)
	lengths := []int{1, 100, MaxFrame, 1, maxPlain, maxPlain - frameHeader, MaxFrame, MaxFrame, MaxFrame + 1, len(content), 7}
	sent := make(chan error, 1)
	go func() {
		for range 10 {
			for _, n := range lengths {
				if _, err := from.Write(dataFrame(content[:n])); err != nil {
					sent <- err
					return
				}
			}
		}
		sent <- nil
	}()
	for range 10 {
		for _, n := range lengths {
			var head [frameHeader]byte
			body := make([]byte, n)
			_, err := io.ReadFull(to, head[:])
			if err == nil {
				_, err = io.ReadFull(to, body)
			}
			if err != nil || !bytes.Equal(body, content[:n]) {
				t.Fatalf("a frame of %d bytes came otherwise: %v", n, err)
			}
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// TestWire_WritesAFrameAtOnce: four records, and the kernel is asked once.
func TestWire_WritesAFrameAtOnce(t *testing.T) {
	from, to, kernel := wiredPair(t)
	go func() { _, _ = io.Copy(io.Discard, to) }()
	// TLS begins with records of a packet each, and goes over to full ones.
	for range 4 {
		if _, err := from.Write(dataFrame(make([]byte, MaxFrame))); err != nil {
			t.Fatal(err)
		}
	}
	before := kernel.writes.Load()
	for range 8 {
		if _, err := from.Write(dataFrame(make([]byte, MaxFrame))); err != nil {
			t.Fatal(err)
		}
	}
	if n := kernel.writes.Load() - before; n != 8 {
		t.Errorf("8 frames took %d writes", n)
	}
}

// TestWire_EndsInsideAFrame: who waits for the rest of a frame learns that none
// comes.
func TestWire_EndsInsideAFrame(t *testing.T) {
	from, to, _ := wiredPair(t)
	frame := dataFrame(make([]byte, MaxFrame))
	if _, err := from.Conn.Write(frame[:len(frame)/2]); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(to, make([]byte, len(frame)))
		read <- err
	}()
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		if err == nil {
			t.Fatal("half a frame was a whole one")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the reader waits for ever")
	}
}

// TestWire_Deadline: a read ends with its deadline, and the next one goes on.
func TestWire_Deadline(t *testing.T) {
	from, to, _ := wiredPair(t)
	w := to.wire
	w.await(MaxFrame)
	if err := w.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("no deadline: %v", err)
	}
	if err := w.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = from.Write(dataFrame([]byte("portolan"))) }()
	got := make([]byte, frameHeader+len("portolan"))
	if _, err := io.ReadFull(to, got); err != nil || string(got[frameHeader:]) != "portolan" {
		t.Fatalf("%q: %v", got, err)
	}
}

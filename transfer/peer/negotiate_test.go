package peer

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	msmux "github.com/multiformats/go-multistream"
)

const aProtocol = "/portolan/test/1"

// piped is one end of a pipe as a stream.
type piped struct {
	network.MuxedStream
	c net.Conn
}

func (p piped) Read(b []byte) (int, error)        { return p.c.Read(b) }
func (p piped) Write(b []byte) (int, error)       { return p.c.Write(b) }
func (p piped) SetReadDeadline(t time.Time) error { return p.c.SetReadDeadline(t) }
func (p piped) Close() error                      { return p.c.Close() }

// asking is a stream whose choice is not answered yet, over one end of a connection.
func asking(t *testing.T, here, there net.Conn) *chosen {
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return &chosen{MuxedStream: piped{c: here}, proto: aProtocol, choice: said(aProtocol), answer: said(aProtocol)}
}

// loopback is a connection with buffers, which a pipe has none of.
func loopback(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	here, err = net.Dial("tcp", l.Addr().String())
	must(t, err)
	there, err = l.Accept()
	must(t, err)
	return here, there
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantRead reads as many bytes as want has.
func wantRead(t *testing.T, from io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(from, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

// TestChosen_ADeadlineBeforeTheAnswer: a read that ends before the other side said
// anything, or in the middle of its answer, takes nothing from those after it.
func TestChosen_ADeadlineBeforeTheAnswer(t *testing.T) {
	here, there := net.Pipe()
	s := asking(t, here, there)
	wrote := make(chan error, 1)
	go func() { _, err := s.Write([]byte("question")); wrote <- err }()
	wantRead(t, there, string(said(aProtocol))+"question")
	must(t, <-wrote)

	must(t, s.SetReadDeadline(time.Now()))
	for range 3 {
		if n, err := s.Read(make([]byte, 100)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a read after its deadline: %d, %v", n, err)
		}
	}
	must(t, s.SetReadDeadline(time.Time{}))
	go func() {
		_, err := there.Write(said(aProtocol)[:5])
		wrote <- err
		_ = s.SetReadDeadline(time.Now())
	}()
	if n, err := s.Read(make([]byte, 100)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a read whose deadline passed within the answer: %d, %v", n, err)
	}
	must(t, <-wrote)

	must(t, s.SetReadDeadline(time.Time{}))
	go func() { _, err := there.Write(append(said(aProtocol)[5:], "reply"...)); wrote <- err }()
	wantRead(t, s, "reply")
	must(t, <-wrote)
}

// TestChosen_SpeaksMultistream: the other side is the library that others use.
func TestChosen_SpeaksMultistream(t *testing.T) {
	for _, c := range []struct {
		name, speaks string
		first        func(s *chosen) error // what this side begins with
		err          error
	}{
		{"written first", aProtocol, func(s *chosen) error { _, err := s.Write([]byte("question")); return err }, nil},
		{"read first", aProtocol, func(*chosen) error { return nil }, nil},
		{"not spoken", "/portolan/other/1", func(*chosen) error { return nil }, msmux.ErrNotSupported[protocol.ID]{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, there := loopback(t)
			s := asking(t, here, there)
			muxer := msmux.NewMultistreamMuxer[string]()
			muxer.AddHandler(c.speaks, nil)
			answered := make(chan error, 1)
			go func() {
				proto, _, err := muxer.Negotiate(there)
				if err == nil && proto != aProtocol {
					err = errors.New(proto)
				}
				if err == nil && c.name == "written first" {
					b := make([]byte, len("question"))
					_, err = io.ReadFull(there, b)
				}
				if err == nil {
					_, err = there.Write([]byte("reply"))
				}
				answered <- err
			}()
			must(t, c.first(s))
			if c.err == nil {
				wantRead(t, s, "reply")
				must(t, <-answered)
				return
			}
			for range 2 {
				if _, err := s.Read(make([]byte, 5)); !errors.Is(err, c.err) {
					t.Errorf("a protocol that is not spoken: %v", err)
				}
			}
			_ = there.Close()
			<-answered
		})
	}
}

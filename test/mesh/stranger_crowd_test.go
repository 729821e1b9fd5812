package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/cluster"
)

// crowdSize is how many connections come to a port.
const crowdSize = 10_000

// footprint is what a node's process has at a time.
type footprint struct{ files, goroutines, memory float64 }

func (m mesh) figures(t *testing.T, i int) footprint {
	t.Helper()
	return footprint{m.metric(t, i, "process_open_fds"), m.metric(t, i, "go_goroutines"), m.metric(t, i, "process_resident_memory_bytes")}
}

// crowd is connections of strangers, from as many addresses as asked for.
type crowd struct {
	to      string
	sources int
	styles  []func(net.Conn)

	mu    sync.Mutex
	conns []net.Conn
	next  int
}

// dial opens one more connection and says its words.
func (c *crowd) dial(ctx context.Context) error {
	c.mu.Lock()
	i := c.next
	c.next++
	c.mu.Unlock()
	k := i % c.sources
	from := net.IPv4(127, 1+byte(k>>16), byte(k>>8), 1+byte(k)%250) // all of 127/8 is this machine
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: cluster.Patience}).DialContext(ctx, "tcp", c.to)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil // turned away before the dialler looked
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	c.styles[i%len(c.styles)](conn)
	return nil
}

// come opens n connections, some at a time.
func (c *crowd) come(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if err := c.dial(t.Context()); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}

// press goes on coming, 200 connections a second, until stop is called. The
// oldest give their files up for it.
func (c *crowd) press(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			c.mu.Lock()
			var old net.Conn
			if len(c.conns) > 0 {
				old, c.conns = c.conns[0], c.conns[1:]
			}
			c.mu.Unlock()
			if old != nil {
				_ = old.Close()
			}
			if err := c.dial(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// enoughFiles skips the test where this process, or the nodes that inherit its
// limit, could not hold the crowd.
func enoughFiles(t *testing.T) {
	t.Helper()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Max < crowdSize+500 {
		t.Skipf("a process may have %d files open here, and the crowd is %d: raise the hard limit (ulimit -Hn)", files.Max, crowdSize)
	}
	if files.Cur < crowdSize+500 { // Go has raised it already, unless somebody lowered it
		files.Cur = files.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
			t.Fatal(err)
		}
	}
}

func say(b []byte) func(net.Conn) { return func(c net.Conn) { _, _ = c.Write(b) } }

// TestStranger_HarmsNothing: ten thousand connections of strangers at each port in
// turn, from few addresses and from thousands, that say nothing, a little, or
// something foreign, and go on coming. Meanwhile edits and pulls go on, what the
// node keeps of them is bounded, and afterwards it is as before.
func TestStranger_HarmsNothing(t *testing.T) {
	enoughFiles(t)
	m, removed := closedMesh(t)
	m.Must(t, 0, "project", "create", "prod", "--public")
	first := hello(t)
	for _, p := range []struct {
		name     string
		port     int
		bound    float64 // of connections that the node keeps
		refusals []string
		styles   []func(net.Conn)
	}{
		{"control", controlPort, 256, []string{`portolan_wire_refusals_total{reason="busy"}`, `portolan_wire_refusals_total{reason="handshake"}`},
			[]func(net.Conn){say(nil), say(first[:1]), say(first[:len(first)/2]), say(first), say([]byte("GET / HTTP/1.1\r\n"))}},
		{"gossip", gossipPort, 128, []string{`portolan_gossip_refusals_total{reason="busy"}`, `portolan_gossip_refusals_total{reason="unreadable"}`},
			[]func(net.Conn){say(nil), say([]byte{244}), say([]byte{244, 36, 'a'}), say([]byte{10, 0, 0x10, 0, 0})}},
		{"data", dataPort, 256, []string{`portolan_transfer_peer_refusals_total{reason="busy"}`, `portolan_transfer_peer_refusals_total{reason="handshake"}`},
			[]func(net.Conn){say(nil), say([]byte("\x13/multistream")), say([]byte("\x13/multistream/1.0.0\n")), say([]byte("\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n")), say([]byte("GET / HTTP/1.1\r\n"))}},
		{"registry", httpPort, 8 << 10, []string{`portolan_registryapi_connections_dropped_total{reason="busy"}`, `portolan_registryapi_connections_dropped_total{reason="silent"}`},
			[]func(net.Conn){say(nil), say([]byte("G")), say([]byte("GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A"))}},
	} {
		for _, sources := range []int{3, crowdSize} {
			t.Run(fmt.Sprintf("%s/from %d addresses", p.name, sources), func(t *testing.T) {
				before := m.figures(t, 0)
				var counted []float64
				for _, name := range p.refusals {
					counted = append(counted, m.metric(t, 0, name))
				}
				c := &crowd{to: m.port(t, 0, p.port), sources: sources, styles: p.styles}
				defer c.leave()
				c.come(t, crowdSize)
				stop := c.press(t)
				m.lifeGoesOn(t, fmt.Sprintf("%s-%d", p.name, sources))
				during := m.figures(t, 0)
				stop()
				t.Logf("before %+v, with the crowd %+v", before, during)
				// Beside the crowd a node opens what its own work needs.
				if n := during.files - before.files; n > p.bound+100 {
					t.Errorf("%v files for a crowd of %d, at most %v are to be", n, crowdSize, p.bound)
				}
				if n := during.goroutines - before.goroutines; n > 3*p.bound+200 {
					t.Errorf("%v goroutines for a crowd", n)
				}
				if n := during.memory - before.memory; n > p.bound*(64<<10)+128<<20 {
					t.Errorf("%v MiB for a crowd", n/(1<<20))
				}
				c.leave()
				for i, name := range p.refusals {
					cluster.Eventually(t, cluster.Patience, name+" has counted", func() error {
						if n := m.metric(t, 0, name); n <= counted[i] {
							return fmt.Errorf("%v, as before", n)
						}
						return nil
					})
				}
				m.fallsBack(t, before)
			})
		}
	}
	t.Run("control/with keys", func(t *testing.T) { m.keyedCrowd(t, removed) })
}

// lifeGoesOn edits at each site and reads it at the others, and pulls.
func (m mesh) lifeGoesOn(t *testing.T, name string) {
	t.Helper()
	for i := range m.Sites {
		project := fmt.Sprintf("%s-%d", name, i)
		cluster.Eventually(t, cluster.Patience, "an edit at "+m.Sites[i].Name, func() error {
			status, body, err := m.Do(t, i, http.MethodPost, "/api/v2.0/projects", http.Header{"Content-Type": {"application/json"}}, bodyOf(`{"project_name":"`+project+`"}`))
			if err == nil && status != http.StatusCreated && status != http.StatusConflict { // it was made, and the answer was lost
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	}
	blob := m.pushBlob(t, 1, "prod/app", name)
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "a pull at "+m.Sites[i].Name, func() error {
			status, _, err := m.Get(t, i, "/v2/prod/app/blobs/"+blob)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%d", status)
			}
			return err
		})
		cluster.Eventually(t, cluster.Patience, "the edits are known at "+m.Sites[i].Name, func() error {
			for k := range m.Sites {
				status, body, err := m.Get(t, i, fmt.Sprintf("/api/v2.0/projects/%s-%d", name, k))
				if err != nil || status != http.StatusOK {
					return fmt.Errorf("%d %s %s", status, body, fmt.Sprint(err))
				}
			}
			return nil
		})
	}
}

// fallsBack waits until the node has no more files and goroutines than before,
// and some: its own connections come and go.
func (m mesh) fallsBack(t *testing.T, before footprint) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	cluster.Eventually(t, cluster.Patience, "the node is as before", func() error {
		if now := m.figures(t, 0); now.files > before.files+40 || now.goroutines > before.goroutines+100 {
			return fmt.Errorf("%+v, before it was %+v", now, before)
		}
		return nil
	})
}

// keyedCrowd: strangers with keys of their own come through the handshake, as a
// joiner does, and then say nothing, or the beginning of HTTP/2 and nothing more,
// or open calls without end.
func (m mesh) keyedCrowd(t *testing.T, removed *identity.Identity) {
	at, err := identity.Load(m.Sites[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	stranger, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	before := m.figures(t, 0)
	const refused = `portolan_wire_refusals_total{reason="strangers"}`
	counted := m.metric(t, 0, refused)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	answered := 0
	for i := range 300 {
		id := stranger
		if i%2 == 0 {
			id = removed
		}
		raw, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 0, 1+byte(i%3))}}).DialContext(t.Context(), "tcp", m.port(t, 0, controlPort))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, raw)
		_ = raw.SetDeadline(time.Now().Add(cluster.Patience))
		c, _, err := wire.Credentials(id, at.ID).ClientHandshake(t.Context(), "", raw)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 1:
			_, _ = io.WriteString(c, http2.ClientPreface)
		case 2:
			answered += endlessCalls(c)
		}
	}
	if answered == 0 {
		t.Error("calls without end are taken")
	}
	m.lifeGoesOn(t, "keyed")
	during := m.figures(t, 0)
	t.Logf("before %+v, with the crowd %+v; %d calls were refused", before, during, answered)
	if n := m.metric(t, 0, refused) - counted; n < 300-64 {
		t.Errorf("%v of 300 strangers were refused", n)
	}
	if during.files > before.files+64+100 || during.goroutines > before.goroutines+64*20+200 || during.memory > before.memory+192<<20 {
		t.Errorf("with the crowd %+v, before %+v", during, before)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	m.fallsBack(t, before)
}

// endlessCalls opens calls and ends none, and gives how many were refused.
func endlessCalls(c net.Conn) (refused int) {
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return 0
	}
	f := http2.NewFramer(c, c)
	_ = f.WriteSettings()
	for i := range 200 {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", consensus.Control_Join_FullMethodName}, {":authority", "x"},
			{"content-type", "application/grpc"}, {"te", "trailers"}} {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: block.Bytes()}) != nil {
			break
		}
		_ = f.WriteData(id, false, []byte{0, 0, 0xf, 0xff, 0xff}) // the head of a message that never comes
	}
	_ = c.SetReadDeadline(time.Now().Add(cluster.Patience))
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return refused // turned away
		}
		switch fr := fr.(type) {
		case *http2.HeadersFrame:
			if fr.StreamEnded() {
				refused++
			}
		case *http2.PingFrame: // gRPC's; what was sent before it is answered
			continue
		}
		if refused == 200-16 {
			return refused
		}
	}
}

func bodyOf(s string) io.Reader { return bytes.NewReader([]byte(s)) }

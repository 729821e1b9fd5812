package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		// memberlist does not join its probes: they end by themselves within a
		// probe interval, longer than goleak waits.
		end := time.Now().Add(waitFor)
		err := goleak.Find()
		for err != nil && time.Now().Before(end) {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// waitFor bounds every wait: the loss of a node takes about 8 s.
const waitFor = 40 * time.Second

type hint struct {
	from    identity.NodeID
	kind    byte
	payload string
}

// node is a Mesh that runs.
type node struct {
	*Mesh
	cfg     Config
	hints   chan hint
	changes chan struct{}
	stop    func()
}

// world is what the nodes of one test share.
type world struct {
	t    testing.TB
	mesh identity.MeshID
	keys [][]byte
	mu   sync.Mutex
	all  []string
}

func newWorld(t testing.TB) *world {
	return &world{t: t, mesh: identity.NewMeshID(), keys: [][]byte{newKey()}}
}

func newKey() []byte {
	k := make([]byte, keyBytes)
	_, _ = rand.Read(k)
	return k
}

func (w *world) seeds() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

func (w *world) config(site string) Config {
	id, _, err := identity.LoadOrCreate(w.t.TempDir())
	if err != nil {
		w.t.Fatal(err)
	}
	return Config{
		Self: id.ID, Site: site, Level: 3, BindAddr: "127.0.0.1", AdvertiseHost: "127.0.0.1",
		Mesh: w.mesh, Keys: w.keys, Seeds: w.seeds, RejoinEvery: time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (w *world) start(cfg Config) *node {
	w.t.Helper()
	m, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.Port = m.Port()
	n := &node{Mesh: m, cfg: cfg, hints: make(chan hint, 100), changes: make(chan struct{}, 1)}
	m.OnHint(func(from identity.NodeID, kind byte, payload []byte) {
		n.hints <- hint{from, kind, string(payload)}
	})
	m.OnChange(func() {
		m.Members() // a handler may ask
		select {
		case n.changes <- struct{}{}:
		default:
		}
	})
	w.mu.Lock()
	if addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(m.Port())); !slices.Contains(w.all, addr) {
		w.all = append(w.all, addr)
	}
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Run: %v", err)
			}
		case <-time.After(waitFor):
			w.t.Error("Run does not end")
		}
	})
	w.t.Cleanup(n.stop)
	return n
}

// kill ends a node as kill -9 would for the others: no good-bye, port closed.
func (n *node) kill() {
	_ = n.tr.Shutdown()
	n.stop()
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(waitFor); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not within %v", what, waitFor)
		}
	}
}

func sees(n *node, others ...*node) func() bool {
	return func() bool {
		for _, o := range others {
			if !n.Alive(o.cfg.Self) {
				return false
			}
		}
		return true
	}
}

func find(n *node, id identity.NodeID) Member {
	for _, m := range n.Members() {
		if m.ID == id {
			return m
		}
	}
	return Member{}
}

func TestMesh_ThreeNodes(t *testing.T) {
	w := newWorld(t)
	var log syncBuffer
	const lost = `level=WARN msg="a node can't be reached" site=sgp`
	cfg := w.config("fra")
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	a, b, c := w.start(cfg), w.start(w.config("mum")), w.start(w.config("sgp"))
	nodes := []*node{a, b, c}
	for _, n := range nodes {
		eventually(t, "all see all", sees(n, nodes...))
	}

	t.Run("members tell their site and address", func(t *testing.T) {
		m := find(a, c.cfg.Self)
		if m.Site != "sgp" || m.Level != 3 || m.Draining || m.Since.IsZero() ||
			m.Host != net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port())) {
			t.Fatalf("%+v", m)
		}
		select {
		case <-a.changes:
		case <-time.After(waitFor):
			t.Fatal("OnChange was not called")
		}
	})

	t.Run("an announcement reaches all others at once", func(t *testing.T) {
		payload := strings.Repeat("x", MaxPayload)
		a.Announce(7, []byte(payload))
		for _, n := range []*node{b, c} {
			select {
			case h := <-n.hints:
				if h != (hint{a.cfg.Self, 7, payload}) {
					t.Fatalf("hint of kind %d from %v, %d bytes", h.kind, h.from, len(h.payload))
				}
			case <-time.After(waitFor):
				t.Fatal("no announcement")
			}
		}
		a.Announce(7, make([]byte, MaxPayload+1))
		if got := testutil.ToFloat64(a.dropped.WithLabelValues("too large")); got != 1 {
			t.Fatalf("%v dropped as too large, want 1", got)
		}
		if len(a.hints) != 0 {
			t.Fatal("a node hears itself")
		}
	})

	t.Run("round trips are measured", func(t *testing.T) {
		eventually(t, "RTT", func() bool { d, ok := a.RTT(b.cfg.Self); return ok && d > 0 })
		if m := find(a, b.cfg.Self); m.RTT <= 0 {
			t.Fatalf("%+v", m)
		}
	})

	t.Run("draining is told", func(t *testing.T) {
		b.SetDraining(true)
		eventually(t, "draining seen", func() bool { return find(c, b.cfg.Self).Draining })
	})

	t.Run("a node that is killed is lost, and found when it is back", func(t *testing.T) {
		began := time.Now()
		c.kill()
		for _, n := range []*node{a, b} {
			eventually(t, "lost", func() bool { return !n.Alive(c.cfg.Self) })
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("noticed after %v, want 15 s at most", took)
		}
		if m := find(a, c.cfg.Self); m.Alive || m.Since.Before(began) || m.RTT != 0 {
			t.Errorf("%+v", m)
		}
		eventually(t, "it is told", func() bool { return strings.Count(log.String(), lost) == 1 })
		c = w.start(c.cfg) // same key, same port
		for _, n := range []*node{a, b} {
			eventually(t, "found", sees(n, c))
		}
		eventually(t, "finds", sees(c, a, b))
	})

	t.Run("a node that leaves is gone at once", func(t *testing.T) {
		began := time.Now()
		c.stop()
		eventually(t, "gone", func() bool { return !a.Alive(c.cfg.Self) && !b.Alive(c.cfg.Self) })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("noticed after %v", took)
		}
		eventually(t, "it is told", func() bool {
			return strings.Contains(log.String(), `level=INFO msg="a node has stopped" site=sgp`)
		})
		if n := strings.Count(log.String(), lost); n != 1 {
			t.Errorf("%d times lost: %s", n, log.String())
		}
		c = w.start(c.cfg)
		eventually(t, "found", sees(a, c))
	})
}

func TestMesh_WrongKeyOrMesh(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.config("fra"))
	wrongKey := w.config("mum")
	wrongKey.Keys = [][]byte{newKey()}
	wrongMesh := w.config("sgp")
	wrongMesh.Mesh = identity.NewMeshID()
	for name, cfg := range map[string]Config{"key": wrongKey, "mesh": wrongMesh} {
		t.Run(name, func(t *testing.T) {
			var log syncBuffer
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			b := w.start(cfg)
			eventually(t, "refusal in the log", func() bool {
				return strings.Contains(log.String(), "gossip reaches no other node")
			})
			b.Announce(1, []byte("hello"))
			if a.Alive(b.cfg.Self) || b.Alive(a.cfg.Self) || len(a.Members()) != 1 || len(a.hints) != 0 {
				t.Fatalf("a sees %v, b sees %v", a.Members(), b.Members())
			}
		})
	}
}

func TestMesh_KeysRotate(t *testing.T) {
	w := newWorld(t)
	old, next := newKey(), newKey()
	first, second := w.config("fra"), w.config("mum")
	first.Keys, second.Keys = [][]byte{old, next}, [][]byte{next, old}
	a, b := w.start(first), w.start(second)
	eventually(t, "both ways", func() bool { return sees(a, b)() && sees(b, a)() })
}

// After a long cut memberlist has forgotten everybody; the loop has not.
func TestMesh_FindsNodesThatStartLater(t *testing.T) {
	w := newWorld(t)
	quiet := w.config("fra")
	quiet.Seeds = func() []string { return nil } // only the other one's loop can help
	a := w.start(quiet)
	c := w.config("sgp")
	var mu sync.Mutex
	known := false
	c.Seeds = func() []string {
		mu.Lock()
		defer mu.Unlock()
		if !known {
			return []string{"127.0.0.1:1", "not an address", "name.invalid:7946"}
		}
		return []string{find(a, a.cfg.Self).Host}
	}
	n := w.start(c)
	mu.Lock()
	known = true
	mu.Unlock()
	eventually(t, "found by the loop", sees(n, a))
}

func TestMesh_ManyStreamsAndGarbage(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.config("fra"))
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port()))
	var conns []net.Conn
	for range maxStreams + 10 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	// Those above the bound of one address go at once, the oldest first.
	for i, c := range conns[:len(conns)-maxStreamsPerPeer] {
		_ = c.SetDeadline(time.Now().Add(waitFor))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Fatalf("stream %d, of %d too many: %v", i, len(conns)-maxStreamsPerPeer, err)
		}
	}
	if n := a.tr.guests.Len(); n > maxStreamsPerPeer {
		t.Fatalf("%d streams are open", n)
	}
	for _, c := range conns {
		_, _ = c.Write(bytes.Repeat([]byte{0xff}, 100))
		_ = c.Close()
	}
	udp, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for i := range 200 {
		_, _ = udp.Write(bytes.Repeat([]byte{byte(i)}, i))
	}
	b := w.start(w.config("mum"))
	eventually(t, "others are still served", sees(b, a))
}

// TestMesh_CountsStrangers: what a stranger sends is counted, by what is wrong
// with it, and has no answer that he could read; what he makes this node keep is
// bounded, also if he knows the mesh's label and not its key.
func TestMesh_CountsStrangers(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.config("fra"))
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port()))
	label := []byte(a.cfg.Mesh.String())
	labelled := append([]byte{244, byte(len(label))}, label...) // memberlist's hasLabelMsg
	count := func(reason string) float64 { return testutil.ToFloat64(a.refusals.WithLabelValues(reason)) }

	t.Run("packets", func(t *testing.T) {
		udp, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		for name, b := range map[string][]byte{
			"garbage": bytes.Repeat([]byte{0xff}, 100), "HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "half a label": labelled[:10],
			"label alone": labelled, "label and garbage": append(bytes.Clone(labelled), bytes.Repeat([]byte{1}, 200)...),
			"another mesh's": append([]byte{244, 3}, "abcdefgh"...), "no label": {244, 0, 1}, "one byte": {9},
		} {
			before := count(refusedUnreadable)
			if _, err := udp.Write(b); err != nil {
				t.Fatal(err)
			}
			eventually(t, name+" is counted", func() bool { return count(refusedUnreadable) == before+1 })
		}
		_ = udp.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := udp.Read(make([]byte, 1500)); err == nil {
			t.Errorf("an answer of %d bytes to a stranger's packet", n)
		}
	})
	t.Run("streams", func(t *testing.T) {
		for name, c := range map[string]struct {
			b      []byte
			reason string
		}{
			"garbage":            {bytes.Repeat([]byte{0xff}, 100), refusedUnreadable},
			"HTTP":               {[]byte("GET / HTTP/1.1\r\n\r\n"), refusedUnreadable},
			"half a label":       {labelled[:10], refusedUnreadable},
			"another mesh's":     {append([]byte{244, 3}, "abcdefgh"...), refusedUnreadable},
			"label, not the key": {slices.Concat(labelled, []byte{10, 0, 0, 0, 60}, bytes.Repeat([]byte{1}, 60)), refusedUnreadable}, // encryptMsg
			"label, and plain":   {slices.Concat(labelled, []byte{6}, bytes.Repeat([]byte{1}, 60)), refusedUnreadable},               // pushPullMsg
			"label, and 19 MiB":  {slices.Concat(labelled, []byte{10, 1, 0x30, 0, 0}, make([]byte, 2*maxStreamBytes)), refusedTooLong},
		} {
			before := count(c.reason)
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(waitFor))
			go func() {
				_, _ = conn.Write(c.b)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			got, _ := io.ReadAll(conn)
			_ = conn.Close()
			eventually(t, name+" is counted", func() bool { return count(c.reason) > before })
			for _, secret := range [][]byte{label, a.cfg.Mesh[:], []byte("fra"), a.cfg.Self[:], []byte(a.cfg.Self.String()), []byte("memberlist"), []byte("limit")} {
				if bytes.Contains(got, secret) {
					t.Errorf("%s: the answer holds %q: %q", name, secret, got)
				}
			}
		}
	})
	eventually(t, "no stream is left", func() bool { return a.tr.guests.Len() == 0 })
	b := w.start(w.config("mum"))
	eventually(t, "others are still served", sees(b, a))
}

func TestNew_PortInUse(t *testing.T) {
	w := newWorld(t)
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			var port int
			if network == "tcp" {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				port = l.Addr().(*net.TCPAddr).Port
			} else {
				l, err := net.ListenPacket("udp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				port = l.LocalAddr().(*net.UDPAddr).Port
			}
			cfg := w.config("fra")
			cfg.Port = port
			_, err := New(cfg)
			want := fmt.Sprintf("port %d on 127.0.0.1 is in use: stop what uses it or choose another with --gossip-port", port)
			if err == nil || err.Error() != want {
				t.Fatalf("err %v, want %s", err, want)
			}
		})
	}
}

func TestNew_Refuses(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no key":      {func(c *Config) { c.Keys = nil }, "needs a key"},
		"a short key": {func(c *Config) { c.Keys = [][]byte{make([]byte, 16)} }, "expected 32"},
		"no mesh":     {func(c *Config) { c.Mesh = identity.MeshID{} }, "are needed"},
		"a long site": {func(c *Config) { c.Site = strings.Repeat("x", 300) }, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := w.config("fra")
			c.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("err %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestNew_AdvertisesNames(t *testing.T) {
	w := newWorld(t)
	for host, want := range map[string]string{"localhost": "127.0.0.1", "192.0.2.7": "192.0.2.7", "": "127.0.0.1"} {
		cfg := w.config("fra")
		cfg.AdvertiseHost = host
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		got := m.Members()[0].Host
		_ = m.Close()
		if h, _, _ := net.SplitHostPort(got); h != want {
			t.Errorf("advertises %q as %s, want %s", host, got, want)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

package consensus

import (
	"bytes"
	"context"
	"crypto/rand"
	goflag "flag" // the package has a function of that name
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/ports"
)

// meshesAtOnce is how many tests run side by side: they wait for elections and
// time-outs nearly all the time, and use a fiftieth of a core. Tests that hold
// answers against the clock, or want no election between two of them, are not
// parallel, and so run alone.
const meshesAtOnce = "4"

func TestMain(m *testing.M) {
	goflag.Parse()
	given := false
	goflag.Visit(func(f *goflag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := goflag.Set("test.parallel", meshesAtOnce); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// network is the links between the nodes of a test: each pair can be cut. What
// is on its way then waits, as with a router that drops packets.
type network struct {
	mu      sync.Mutex
	changed chan struct{}
	cut     map[[2]string]bool
	delay   map[[2]string]time.Duration // one way
}

func newNetwork() *network {
	return &network{changed: make(chan struct{}), cut: make(map[[2]string]bool), delay: make(map[[2]string]time.Duration)}
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (n *network) set(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[pair(a, b)] = cut
	close(n.changed)
	n.changed = make(chan struct{})
}

// slow makes a link's round trip that long.
func (n *network) slow(a, b string, trip time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay[pair(a, b)] = trip / 2
}

// travel takes as long as the link's way; what is sent meanwhile waits its turn,
// as it would for an answer.
func (n *network) travel(a, b string, stop <-chan struct{}) error {
	n.mu.Lock()
	d := n.delay[pair(a, b)]
	n.mu.Unlock()
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-stop:
		return net.ErrClosed
	}
}

// wait returns when the link is whole, or stop or the deadline is reached.
func (n *network) wait(a, b string, stop <-chan struct{}, deadline time.Time) error {
	var late <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		late = t.C
	}
	for {
		n.mu.Lock()
		cut, changed := n.cut[pair(a, b)], n.changed
		n.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-changed:
		case <-stop:
			return net.ErrClosed
		case <-late:
			return os.ErrDeadlineExceeded
		}
	}
}

// link is a connection through the network.
type link struct {
	net.Conn
	net      *network
	a, b     string
	once     sync.Once
	closed   chan struct{}
	rd, wr   atomic.Pointer[time.Time]
	closeErr error
}

func (n *network) link(a, b string, c net.Conn) *link {
	return &link{Conn: c, net: n, a: a, b: b, closed: make(chan struct{})}
}

func at(p *atomic.Pointer[time.Time]) time.Time {
	if t := p.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

func (l *link) SetDeadline(t time.Time) error {
	l.rd.Store(&t)
	l.wr.Store(&t)
	return l.Conn.SetDeadline(t)
}

func (l *link) SetReadDeadline(t time.Time) error {
	l.rd.Store(&t)
	return l.Conn.SetReadDeadline(t)
}

func (l *link) SetWriteDeadline(t time.Time) error {
	l.wr.Store(&t)
	return l.Conn.SetWriteDeadline(t)
}

func (l *link) Read(b []byte) (int, error) {
	k, err := l.Conn.Read(b)
	if err != nil {
		return k, err
	}
	if err := l.net.wait(l.a, l.b, l.closed, at(&l.rd)); err != nil {
		return 0, err
	}
	// The other end's connection is not one of the network's: its way is here.
	if err := l.net.travel(l.a, l.b, l.closed); err != nil {
		return 0, err
	}
	return k, nil
}

func (l *link) Write(b []byte) (int, error) {
	if err := l.net.wait(l.a, l.b, l.closed, at(&l.wr)); err != nil {
		return 0, err
	}
	if err := l.net.travel(l.a, l.b, l.closed); err != nil {
		return 0, err
	}
	return l.Conn.Write(b)
}

func (l *link) Close() error {
	l.once.Do(func() { close(l.closed); l.closeErr = l.Conn.Close() })
	return l.closeErr
}

// site is one node of a test's mesh.
type site struct {
	t        *testing.T
	net      *network
	name     string
	dir      string
	id       *identity.Identity
	record   *command.Node
	port     int
	clock    atomic.Pointer[func() time.Time]
	now      func() time.Time // as a joiner
	sites    *sync.Map        // control address -> site name
	profile  Profile          // zero: the mesh's
	lasting  time.Duration    // before votes move for distance; 0: the real time
	draining func(identity.NodeID) bool
	minLevel uint32 // as a joiner; 0: the binary's
	// keyAway and keyBehind are the node's keyAwayFor and keyBehindFor; 0: as they are.
	keyAway, keyBehind time.Duration
	node               *Node
	shutdown           func() error
	ended              <-chan struct{} // closed when the node ends by itself, or is stopped
	// shutdownErr is shutdown where an error is what the test wants.
	shutdownErr func() error
	lines       lines
}

// Members is bound to the node after the listener is there.
type lateMembers struct{ node atomic.Pointer[Node] }

func (m *lateMembers) IsMember(id identity.NodeID) bool {
	n := m.node.Load()
	return n != nil && n.IsMember(id)
}

// logger writes what the site says to its lines, and to the test's output.
func (s *site) logger() *slog.Logger {
	w := io.Writer(&s.lines)
	if testing.Verbose() {
		w = io.MultiWriter(w, s.t.Output())
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo})).With("at", s.name)
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take gives what was written since the last take.
func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

type mesh struct {
	t     *testing.T
	net   *network
	sites sync.Map
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	return &mesh{t: t, net: newNetwork()}
}

func (m *mesh) site(name string) *site {
	m.t.Helper()
	dir := m.t.TempDir()
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		m.t.Fatal(err)
	}
	port := ports.Free(m.t)
	store := identity.NewStoreID()
	s := &site{t: m.t, net: m.net, name: name, dir: filepath.Join(dir, "raft"), id: id, port: port, now: time.Now, sites: &m.sites,
		record: &command.Node{StoreId: store[:], Host: "127.0.0.1", GossipPort: 7946, ControlPort: uint32(port), DataPort: 7948, RegistryUrl: "http://127.0.0.1:5000", Version: "test"}}
	m.sites.Store(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), name)
	return s
}

func (s *site) dial(ctx context.Context, addr string) (net.Conn, error) {
	peer := s.peer(addr)
	if err := s.net.wait(s.name, peer, ctx.Done(), time.Time{}); err != nil {
		return nil, ctx.Err()
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return s.net.link(s.name, peer, c), nil
}

func (s *site) peer(addr string) string {
	name, ok := s.sites.Load(addr)
	if !ok {
		return addr
	}
	return name.(string)
}

func (s *site) setClock(now func() time.Time) { s.clock.Store(&now) }

func (s *site) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// start opens the node and runs it.
func (s *site) start(seeds []*command.Node) {
	s.t.Helper()
	members := &lateMembers{}
	l, err := wire.Listen(net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), s.id, members, s.logger())
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := Open(Config{Dir: s.dir, Identity: s.id, Self: s.record, Profile: s.profile, RaftListener: l.Raft(), DialControl: s.dial,
		DialRaft: func(ctx context.Context, addr string, want identity.NodeID) (net.Conn, error) {
			peer := s.peer(addr)
			if err := s.net.wait(s.name, peer, ctx.Done(), time.Time{}); err != nil {
				return nil, ctx.Err()
			}
			c, err := wire.DialRaft(ctx, addr, want, s.id, members)
			if err != nil {
				return nil, err
			}
			return s.net.link(s.name, peer, c), nil
		},
		keyAwayFor: s.keyAway, keyBehindFor: s.keyBehind,
		Seeds: seeds, Logger: s.logger(), lasting: s.lasting, Draining: s.draining, Now: func() time.Time {
			if now := s.clock.Load(); now != nil {
				return (*now)()
			}
			return time.Now()
		}})
	if err != nil {
		_ = l.Close()
		s.t.Fatal(err)
	}
	members.node.Store(n)
	s.node = n
	srv := wire.NewServer(members)
	n.Register(srv)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	wg.Go(func() { _ = srv.Serve(l.GRPC()) })
	ran := make(chan error, 1)
	nodeCtx, stopNode := context.WithCancel(ctx)
	ended := make(chan struct{})
	s.ended = ended
	go func() {
		err := n.Run(nodeCtx)
		close(ended)
		ran <- err
	}()
	s.shutdown = sync.OnceValue(func() error {
		stopNode()
		err := <-ran
		srv.Stop()
		cancel()
		wg.Wait()
		return err
	})
	expected := false
	s.shutdownErr = func() error { expected = true; return s.shutdown() }
	s.t.Cleanup(func() {
		if err := s.shutdown(); err != nil && !expected {
			s.t.Errorf("%s: %v", s.name, err)
		}
	})
}

// kill ends the node without its handing anything over.
func (s *site) kill() {
	s.t.Helper()
	_ = s.node.raft.Shutdown().Error()
	_ = s.shutdown()
}

func (s *site) bootstrap() {
	s.t.Helper()
	s.start(nil)
	pid := identity.NewProjectID()
	id := identity.NewMeshID()
	err := s.node.Bootstrap(s.t.Context(), &command.MeshCreate{MeshId: id[:], Site: s.name, LibraryProjectId: pid[:], AdminPasswordHash: "$argon2id$x", RaftGeneration: random(16)})
	if err != nil {
		s.t.Fatal(err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func (s *site) token(at *site) Token {
	s.t.Helper()
	t, err := at.node.CreateToken(s.t.Context(), "user:admin", s.name, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	t, err = ParseToken(t.String())
	if err != nil {
		s.t.Fatal(err)
	}
	return t
}

func (s *site) tryJoin(t Token) (*JoinResult, error) {
	return Join(s.t.Context(), JoinConfig{Token: t, Identity: s.id, Node: s.record, Now: s.now, Dial: s.dial, minLevel: s.minLevel})
}

func (s *site) join(at *site) {
	s.t.Helper()
	res, err := s.tryJoin(s.token(at))
	if err != nil {
		s.t.Fatal(err)
	}
	if s.profile == (Profile{}) {
		s.profile = res.Profile
	}
	s.start(res.Nodes)
	await(s.t, s.name+" ready", func() bool { return s.node.isReady() })
}

// await polls a condition at a process's boundary: generous, for busy machines.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// three makes a mesh of three sites with three voters.
func three(t *testing.T) (*mesh, []*site) {
	t.Helper()
	return threeWith(t, Profile{})
}

// threeWith is three with the timings of a profile; zero: lan's.
func threeWith(t *testing.T, p Profile) (*mesh, []*site) {
	t.Helper()
	m := newMesh(t)
	all := []*site{m.site("ams"), m.site("fra"), m.site("sgp")}
	all[0].profile = p
	all[0].bootstrap()
	all[1].join(all[0])
	all[2].join(all[1])
	start := time.Now()
	await(t, "three voters everywhere", func() bool {
		for _, s := range all {
			if len(s.node.Status().Voters) != 3 {
				return false
			}
		}
		return true
	})
	t.Logf("three voters after %s", time.Since(start))
	return m, all
}

func leaderOf(t *testing.T, all []*site) (leader *site, others []*site) {
	t.Helper()
	await(t, "a leader", func() bool {
		leader, others = nil, nil
		for _, s := range all {
			if s.node.Status().IsLeader {
				leader = s
			} else {
				others = append(others, s)
			}
		}
		return leader != nil && len(others) == len(all)-1
	})
	return leader, others
}

func (s *site) createProject(name string) (command.Result, error) {
	pid := identity.NewProjectID()
	return s.node.Propose(s.t.Context(), "user:admin", &command.ProjectCreate{ProjectId: pid[:], Name: name, OwnerId: 2})
}

func (s *site) mustCreateProject(name string) {
	s.t.Helper()
	if _, err := s.createProject(name); err != nil {
		s.t.Fatalf("create project at %s: %v", s.name, err)
	}
	if _, ok := s.node.State().View().Project(name); !ok {
		s.t.Fatalf("%s does not read its own write", s.name)
	}
}

// insist creates a project in times of trouble, when an answer may be lost.
func (s *site) insist(name string) {
	s.t.Helper()
	var last error
	defer func() { s.t.Logf("%s at %s: %v", name, s.name, last) }()
	await(s.t, "project "+name+" made at "+s.name, func() bool {
		_, err := s.createProject(name)
		if err != nil {
			last = err
		}
		return err == nil || s.has(name)
	})
}

func (s *site) has(name string) bool {
	_, ok := s.node.State().View().Project(name)
	return ok
}

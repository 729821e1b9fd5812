package consensus

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network is the links between the nodes of a test: each pair can be cut. What
// is on its way then waits, as with a router that drops packets.
type network struct {
	mu      sync.Mutex
	changed chan struct{}
	cut     map[[2]string]bool
}

func newNetwork() *network {
	return &network{changed: make(chan struct{}), cut: make(map[[2]string]bool)}
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
	return k, nil
}

func (l *link) Write(b []byte) (int, error) {
	if err := l.net.wait(l.a, l.b, l.closed, at(&l.wr)); err != nil {
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
	node     *Node
	shutdown func() error
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
	l, err := net.Listen("tcp", "127.0.0.1:0") // to learn a free port
	if err != nil {
		m.t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
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
	n, err := Open(Config{Dir: s.dir, Identity: s.id, Self: s.record, RaftListener: l.Raft(), DialControl: s.dial,
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
		Seeds: seeds, Logger: s.logger(), Now: func() time.Time {
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
	srv := grpc.NewServer(grpc.Creds(wire.ServerCredentials()))
	n.Register(srv)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	wg.Go(func() { _ = srv.Serve(l.GRPC()) })
	ran := make(chan error, 1)
	nodeCtx, stopNode := context.WithCancel(ctx)
	go func() { ran <- n.Run(nodeCtx) }()
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
	err := s.node.Bootstrap(s.t.Context(), &command.MeshCreate{MeshId: id[:], Site: s.name, GossipKey: random(32), LibraryProjectId: pid[:], AdminPasswordHash: "$argon2id$x", RaftGeneration: random(16)})
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
	return Join(s.t.Context(), JoinConfig{Token: t, Identity: s.id, Node: s.record, Now: s.now, Dial: s.dial})
}

func (s *site) join(at *site) {
	s.t.Helper()
	res, err := s.tryJoin(s.token(at))
	if err != nil {
		s.t.Fatal(err)
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
	m := newMesh(t)
	all := []*site{m.site("ams"), m.site("fra"), m.site("sgp")}
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

func TestMesh_EditsAnywhere_LeaderDies_NodeComesBack(t *testing.T) {
	_, all := three(t)
	leader, others := leaderOf(t, all)
	others[0].mustCreateProject("one")
	for _, s := range all {
		await(t, "edit visible at "+s.name, func() bool { return s.has("one") })
	}
	leader.mustCreateProject("two")
	if _, err := others[1].createProject("one"); !errors.Is(err, &command.Error{Code: command.CodeExists}) {
		t.Fatalf("second project of that name: %v", err)
	}

	leader.kill()
	start := time.Now()
	others[0].insist("three")
	t.Logf("edits resumed after %s", time.Since(start))
	if !others[0].has("two") {
		t.Fatal("an acknowledged edit was lost with the leader")
	}

	leader.start(nil)
	if !leader.node.isReady() || !leader.has("two") {
		t.Fatal("a restarted node has not got its state at once")
	}
	await(t, "the old leader catches up", func() bool { return leader.has("three") })
	leader.mustCreateProject("four")
}

func TestMesh_GracefulStop_HandsOver(t *testing.T) {
	_, all := three(t)
	leader, others := leaderOf(t, all)
	if err := leader.shutdown(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	next, _ := leaderOf(t, others)
	if d := time.Since(start); d > LAN.Election {
		t.Errorf("the new leader needed %s: leadership was not handed over", d)
	}
	next.mustCreateProject("one")
}

// TestRestart_CutOff: a node that starts without anybody else has its state.
func TestRestart_CutOff_HasItsState(t *testing.T) {
	_, all := three(t)
	_, others := leaderOf(t, all)
	s := others[0]
	s.mustCreateProject("one")
	for _, o := range all {
		if err := o.shutdown(); err != nil {
			t.Fatal(err)
		}
	}
	s.start(nil)
	if !s.node.isReady() || !s.has("one") {
		t.Fatal("the node has not got its state without a leader")
	}
	if _, ok := s.node.State().View().User("admin"); !ok {
		t.Fatal("nobody could log in")
	}
}

func refusedFast(t *testing.T, s *site, want ...string) {
	t.Helper()
	// From the cut on: held for one election timeout at most.
	start := time.Now()
	_, err := s.createProject("held")
	if d := time.Since(start); d > LAN.Election+2*LAN.Lease {
		t.Errorf("%s: held for %s", s.name, d)
	}
	var u *command.Unavailable
	if !errors.As(err, &u) {
		t.Fatalf("%s: %v, want an Unavailable", s.name, err)
	}
	await(t, "the loss is noticed", func() bool { return !s.node.Status().Majority })
	best := time.Hour
	for range 5 {
		start = time.Now()
		_, err = s.createProject("refused")
		best = min(best, time.Since(start))
		if !errors.As(err, &u) || u.Indeterminate {
			t.Fatalf("%s: %v, want a plain Unavailable", s.name, err)
		}
	}
	if best > 100*time.Millisecond {
		t.Errorf("%s: refused after %s, want 100 ms", s.name, best)
	}
	if fmt.Sprint(u.Sites) != fmt.Sprint(want) {
		t.Errorf("%s: cannot reach %v, want %v", s.name, u.Sites, want)
	}
}

func TestCutOff_Follower(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	cut, other := others[0], others[1]
	m.net.set(cut.name, leader.name, true)
	m.net.set(cut.name, other.name, true)
	names := []string{leader.name, other.name}
	if names[0] > names[1] {
		names[0], names[1] = names[1], names[0]
	}
	refusedFast(t, cut, names...)
	other.mustCreateProject("goes-on")
	m.net.set(cut.name, leader.name, false)
	m.net.set(cut.name, other.name, false)
	await(t, "the cut-off node catches up", func() bool { return cut.has("goes-on") })
	cut.insist("again")
}

func TestCutOff_Leader(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	names := []string{others[0].name, others[1].name}
	for _, o := range others {
		m.net.set(leader.name, o.name, true)
	}
	refusedFast(t, leader, names...)
	others[0].insist("goes-on")
	for _, o := range others {
		m.net.set(leader.name, o.name, false)
	}
	await(t, "the old leader follows", func() bool { return leader.has("goes-on") })
	if leader.has("refused") {
		t.Error("an edit that was refused as not made was made")
	}
}

// TestCutOff_FromTheLeaderAlone: one link of three is cut. The majority is in
// reach, no election will come, and edits would wait for one for ever.
func TestCutOff_FromTheLeaderAlone(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	m.net.set(leader.name, others[0].name, true)
	refusedFast(t, others[0], leader.name)
	if _, err := others[0].createProject("reason"); err == nil || !strings.Contains(err.Error(), "leading site") {
		t.Errorf("the reason is %v", err)
	}
	others[1].mustCreateProject("elsewhere")
	m.net.set(leader.name, others[0].name, false)
	others[0].insist("again")
}

func TestCutOff_LearnerOfOneVoter(t *testing.T) {
	m := newMesh(t)
	voter, learner := m.site("ams"), m.site("fra")
	voter.bootstrap()
	learner.join(voter)
	learner.mustCreateProject("one")
	if s := learner.node.Status(); s.Role != "learner" || s.LeaderSite != "ams" || len(s.Voters) != 1 {
		t.Fatalf("status: %+v", s)
	}
	m.net.set("ams", "fra", true)
	refusedFast(t, learner, "ams")
	voter.mustCreateProject("two")
	m.net.set("ams", "fra", false)
	await(t, "the learner catches up", func() bool { return learner.has("two") })
}

func TestRequestID_AppliedOnce(t *testing.T) {
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	pid := identity.NewProjectID()
	env, err := command.New("user:admin", time.Now(), &command.ProjectCreate{ProjectId: pid[:], Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.node.propose(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.node.propose(t.Context(), env)
	if err != nil || again.ID != first.ID {
		t.Fatalf("the same request again: %+v, %v; want id %d", again, err, first.ID)
	}
}

// TestSnapshot_ToJoiner: a joiner that needs entries which are gone gets a
// snapshot, and comes to the same state.
func TestSnapshot_ToJoiner(t *testing.T) {
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	rc := a.node.raft.ReloadableConfig()
	rc.TrailingLogs = 1
	if err := a.node.raft.ReloadConfig(rc); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		a.mustCreateProject(fmt.Sprintf("p%d", i))
	}
	if err := a.node.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := a.node.wal.FirstIndex(); err != nil || first < 10 {
		t.Fatalf("the log still begins at %d (%v)", first, err)
	}
	b.join(a)
	for i := range 20 {
		if !b.has(fmt.Sprintf("p%d", i)) {
			t.Fatalf("p%d is missing at the joiner", i)
		}
	}
	b.mustCreateProject("more")
	// And both start again from their snapshots.
	if err := b.shutdown(); err != nil {
		t.Fatal(err)
	}
	b.start(nil)
	if !b.has("more") || !b.has("p0") {
		t.Fatal("the joiner lost its state at the restart")
	}
}

func TestNodeUpdate_NewPortIsTold(t *testing.T) {
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	if err := b.shutdown(); err != nil {
		t.Fatal(err)
	}
	b.record.DataPort = 9999
	b.start(nil)
	await(t, "the new port is known", func() bool {
		n, ok := a.node.State().View().Node(b.id.ID)
		return ok && n.DataPort == 9999
	})
}

// move gives a site that is down another control port.
func (s *site) move() {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	s.record = proto.Clone(s.record).(*command.Node)
	s.record.ControlPort = uint32(s.port)
	s.sites.Store(s.addr(), s.name)
}

// TestNodeUpdate_NewControlPort: the leader cannot find a node that came back at
// another address, so the node finds the leader. Two of three may move at once.
func TestNodeUpdate_NewControlPort(t *testing.T) {
	_, all := three(t)
	for _, moved := range []int{1, 2} {
		leader, others := leaderOf(t, all)
		// The first time a follower; then the leader and one other.
		away := []*site{others[0]}
		if moved == 2 {
			away = []*site{leader, others[0]}
		}
		for _, s := range away {
			if err := s.shutdown(); err != nil {
				t.Fatal(err)
			}
			s.move()
		}
		for _, s := range away {
			s.start(nil)
		}
		for _, s := range away {
			for _, at := range all {
				await(t, at.name+" knows where "+s.name+" is", func() bool {
					n, ok := at.node.State().View().Node(s.id.ID)
					return ok && n.ControlPort == s.port
				})
			}
		}
		for _, s := range all {
			s.insist(fmt.Sprintf("from-%s-%d", s.name, moved))
		}
	}
}

func TestBootstrap_OfADirectoryInUse(t *testing.T) {
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	if err := a.node.Bootstrap(t.Context(), &command.MeshCreate{}); err == nil {
		t.Fatal("a second mesh was made in one directory")
	}
}

// TestReturn_LeaderJoinedMeanwhile: a node that was away lets in a leader that
// it has never heard of, on the word of the members that it knows.
func TestReturn_LeaderJoinedMeanwhile(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	away := others[0]
	if err := away.shutdown(); err != nil {
		t.Fatal(err)
	}
	d := m.site("tyo")
	d.join(leader)
	id := func(s *site) raft.ServerID { return raft.ServerID(s.id.ID.String()) }
	if err := leader.node.raft.DemoteVoter(id(away), 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	if err := leader.node.raft.AddVoter(id(d), raft.ServerAddress(id(d)), 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	await(t, "the new site leads", func() bool {
		_ = leader.node.raft.LeadershipTransferToServer(id(d), raft.ServerAddress(id(d))).Error()
		return d.node.Status().IsLeader
	})
	d.mustCreateProject("meanwhile")
	away.start(nil)
	await(t, "the returned node catches up", func() bool { return away.has("meanwhile") })
}

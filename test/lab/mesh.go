package lab

import (
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
	"sync"
	"sync/atomic"
	"time"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/ports"
)

// Mesh is the sites and the links between them.
type Mesh struct {
	// Net is the links.
	Net *Net
	// Log takes what the nodes say; nil: nobody does. Set it before the first Grow.
	Log io.Writer

	dir     string
	profile consensus.Profile

	mu    sync.Mutex
	sites []*Site
	addrs map[string]string // control address -> site
}

// New makes a mesh without sites, below a directory of the caller's.
func New(dir string) *Mesh {
	return &Mesh{Net: newNet(), dir: dir, addrs: make(map[string]string)}
}

// Grow makes the mesh with a profile's timings, or more of its sites, and waits
// until all have a state and the votes are as many as they shall be: one below
// three sites, three below five, else five.
func (m *Mesh) Grow(ctx context.Context, p consensus.Profile, names ...string) error {
	m.profile = p
	for _, name := range names {
		s, err := m.add(name)
		if err != nil {
			return err
		}
		if len(m.Sites()) == 1 {
			err = s.bootstrap(ctx)
		} else {
			err = s.join(ctx, m.Sites()[0])
		}
		if err != nil {
			return fmt.Errorf("site %s: %w", name, err)
		}
	}
	return m.await(ctx, "votes", func() bool {
		want := map[bool]int{true: 3, false: 1}[len(m.Sites()) >= 3]
		if len(m.Sites()) >= 5 {
			want = 5
		}
		for _, s := range m.Sites() {
			if n := s.Node(); n == nil || len(n.Status().Voters) != want {
				return false
			}
		}
		return true
	})
}

// Sites gives all sites, in the order in which they were made.
func (m *Mesh) Sites() []*Site {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*Site(nil), m.sites...)
}

// Site gives the site of a name, which must be there.
func (m *Mesh) Site(name string) *Site {
	for _, s := range m.Sites() {
		if s.Name == name {
			return s
		}
	}
	panic("lab: no site " + name)
}

// Leader waits until exactly one site that runs leads, and the others follow it.
func (m *Mesh) Leader(ctx context.Context) (leader *Site, others []*Site, err error) {
	err = m.await(ctx, "a leader", func() bool {
		leader, others = nil, nil
		agree := true
		var id identity.NodeID
		for _, s := range m.Sites() {
			n := s.Node()
			if n == nil {
				continue
			}
			st := n.Status()
			if st.IsLeader && leader == nil {
				leader = s
			} else {
				others = append(others, s)
			}
			if st.Leader.IsZero() || (!id.IsZero() && id != st.Leader) {
				agree = false
			}
			id = st.Leader
		}
		return leader != nil && agree
	})
	return leader, others, err
}

// pollEvery is how often what has no event is looked at.
const pollEvery = 5 * time.Millisecond

func (m *Mesh) await(ctx context.Context, what string, ok func() bool) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: waiting for %s: %w", what, ctx.Err())
		case <-t.C:
		}
	}
	return nil
}

// Close stops all nodes.
func (m *Mesh) Close() error {
	m.Net.Heal()
	m.Net.Delay(0)
	var errs []error
	sites := m.Sites()
	for i := len(sites) - 1; i >= 0; i-- {
		errs = append(errs, sites[i].Stop())
	}
	return errors.Join(errs...)
}

// Site is one node of the mesh.
type Site struct {
	Name string

	mesh   *Mesh
	dir    string
	id     *identity.Identity
	record *command.Node
	addr   string

	mu   sync.Mutex
	node *consensus.Node // nil: it does not run
	stop func() error
}

// Node gives the site's node; nil while it does not run.
func (s *Site) Node() *consensus.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

func (m *Mesh) add(name string) (*Site, error) {
	dir := filepath.Join(m.dir, name)
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		return nil, err
	}
	port, err := ports.Take()
	if err != nil {
		return nil, err
	}
	store := identity.NewStoreID()
	s := &Site{Name: name, mesh: m, dir: filepath.Join(dir, "raft"), id: id, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		record: &command.Node{StoreId: store[:], Host: "127.0.0.1", GossipPort: 7946, ControlPort: uint32(port), DataPort: 7948,
			RegistryUrl: "http://127.0.0.1:5000", Version: "lab"}}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sites = append(m.sites, s)
	m.addrs[s.addr] = name
	return s, nil
}

func (s *Site) bootstrap(ctx context.Context) error {
	if err := s.start(nil); err != nil {
		return err
	}
	mesh, pid := identity.NewMeshID(), identity.NewProjectID()
	if err := s.Node().Bootstrap(ctx, &command.MeshCreate{MeshId: mesh[:], Site: s.Name, LibraryProjectId: pid[:],
		AdminPasswordHash: "$argon2id$lab", RaftGeneration: random(16)}); err != nil {
		return err
	}
	_, err := s.Node().Propose(ctx, "user:admin", &command.VotersSet{Voters: 5})
	return err
}

func (s *Site) join(ctx context.Context, at *Site) error {
	token, err := at.Node().CreateToken(ctx, "user:admin", s.Name, time.Hour)
	if err != nil {
		return err
	}
	res, err := consensus.Join(ctx, consensus.JoinConfig{Token: token, Identity: s.id, Node: s.record, Dial: s.dial})
	if err != nil {
		return err
	}
	if err := s.start(res.Nodes); err != nil {
		return err
	}
	select {
	case <-s.Node().Ready():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Site) peer(addr string) string {
	s.mesh.mu.Lock()
	defer s.mesh.mu.Unlock()
	return s.mesh.addrs[addr]
}

func (s *Site) dial(ctx context.Context, addr string) (net.Conn, error) {
	return s.through(ctx, addr, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) })
}

// through is a connection over the network, unless it is to itself.
func (s *Site) through(ctx context.Context, addr string, dial func() (net.Conn, error)) (net.Conn, error) {
	peer := s.peer(addr)
	if peer == "" || peer == s.Name {
		return dial()
	}
	return s.mesh.Net.dial(ctx, s.Name, peer, dial)
}

// lateMembers is bound to the node after the listener is there.
type lateMembers struct {
	node atomic.Pointer[consensus.Node]
}

func (m *lateMembers) IsMember(id identity.NodeID) bool {
	n := m.node.Load()
	return n != nil && n.IsMember(id)
}

// Start runs the node on what it has on disk.
func (s *Site) Start() error { return s.start(nil) }

func (s *Site) start(seeds []*command.Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open(seeds)
}

// open is start for a caller who holds s.mu.
func (s *Site) open(seeds []*command.Node) error {
	log := slog.New(slog.DiscardHandler)
	if s.mesh.Log != nil {
		log = slog.New(slog.NewTextHandler(s.mesh.Log, &slog.HandlerOptions{Level: slog.LevelInfo})).With("at", s.Name)
	}
	members := &lateMembers{}
	l, err := wire.Listen(s.addr, s.id, members, log)
	if err != nil {
		return err
	}
	n, err := consensus.Open(consensus.Config{Dir: s.dir, Identity: s.id, Self: s.record, Profile: s.mesh.profile, RaftListener: l.Raft(),
		DialControl: s.dial, Seeds: seeds, Logger: log,
		DialRaft: func(ctx context.Context, addr string, want identity.NodeID) (net.Conn, error) {
			return s.through(ctx, addr, func() (net.Conn, error) { return wire.DialRaft(ctx, addr, want, s.id, members) })
		}})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	members.node.Store(n)
	srv := wire.NewServer(members)
	n.Register(srv)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	wg.Go(func() { _ = srv.Serve(l.GRPC()) })
	ran := make(chan error, 1)
	nodeCtx, stopNode := context.WithCancel(ctx)
	go func() {
		err := n.Run(nodeCtx)
		ran <- err
		var old *consensus.OutdatedError
		if errors.As(err, &old) {
			s.beginAnew(n)
		}
	}()
	s.node = n
	s.stop = func() error {
		stopNode()
		err := <-ran
		srv.Stop()
		cancel()
		wg.Wait()
		return err
	}
	return nil
}

// Stop stops the node in order, if it runs.
func (s *Site) Stop() error {
	s.mu.Lock()
	stop := s.stop
	s.node, s.stop = nil, nil
	s.mu.Unlock()
	if stop == nil {
		return nil
	}
	var old *consensus.OutdatedError
	if err := stop(); !errors.As(err, &old) {
		return err
	}
	return nil
}

// beginAnew does for a node what the node's process would: its control state is
// an old one.
func (s *Site) beginAnew(n *consensus.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node != n {
		return // it was stopped meanwhile
	}
	_ = s.stop() // ends with what is known already
	s.node, s.stop = nil, nil
	_, err := consensus.SetAside(s.dir, time.Now())
	if err == nil {
		err = s.open(nil)
	}
	if err != nil && s.mesh.Log != nil {
		fmt.Fprintf(s.mesh.Log, "site %s does not begin anew: %v\n", s.Name, err)
	}
}

// Image copies the site's disk, while it does not run, to a directory that is
// not there.
func (s *Site) Image(to string) error { return os.CopyFS(to, os.DirFS(s.dir)) }

// PutBack makes an image the site's disk, while it does not run.
func (s *Site) PutBack(image string) error {
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	return os.CopyFS(s.dir, os.DirFS(image))
}

// Kill ends the node as the others see a power cut: its connections end at once
// and nothing is handed over.
func (s *Site) Kill() error {
	for _, o := range s.mesh.Sites() {
		if o != s {
			s.mesh.Net.CutBoth(s.Name, o.Name)
		}
	}
	s.mesh.Net.drop(s.Name)
	err := s.Stop()
	for _, o := range s.mesh.Sites() {
		if o != s {
			s.mesh.Net.set(false, direction{s.Name, o.Name}, direction{o.Name, s.Name})
		}
	}
	return err
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return b
}

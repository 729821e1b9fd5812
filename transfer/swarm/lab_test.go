package swarm

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/faultfs"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/peer/peertest"
	"github.com/portolan/portolan/transfer/plane"
	"github.com/portolan/portolan/transfer/plane/planetest"
)

func TestMain(m *testing.M) {
	faultfs.ServeWorker(serveReceiver)
	goleak.VerifyTestMain(m)
}

const mib = 1 << 20

var project = identity.NewProjectID()

// lab is a mesh of nodes with real hosts on loopback and real stores.
type lab struct {
	t      testing.TB
	stall  time.Duration  // long, but in tests of stalls: machines that test are busy
	pacer  Pacer          // of the nodes that are started
	bucket *blobs.Backend // of the stores that are started; nil: a disk
	small  bool           // the nodes that are started give small blobs in one look
	net    *planetest.Net // of the nodes that are started; nil: they have real hosts
	log    *slog.Logger   // of the nodes that are started; nil: none

	requestIdle, watchFor time.Duration // as in Config

	mu      sync.Mutex
	members map[identity.NodeID]*net.TCPAddr
	holders []identity.NodeID
	denied  map[identity.NodeID]bool // who may not have the project
}

type node struct {
	lab   *lab
	dir   string
	id    *identity.Identity
	host  *peer.Host // nil: the lab has a net
	plane plane.Host
	store *store.Store
	swarm *Swarm
	stop  func()
}

func newLab(t testing.TB) *lab {
	return &lab{t: t, stall: time.Minute, members: map[identity.NodeID]*net.TCPAddr{}, denied: map[identity.NodeID]bool{}}
}

func (l *lab) lookup(id identity.NodeID) (string, int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.members[id]
	if !ok {
		return "", 0, false
	}
	return at.IP.String(), at.Port, true
}

func (l *lab) isMember(id identity.NodeID) bool { _, _, ok := l.lookup(id); return ok }

func (l *lab) Holders(context.Context, digest.Digest, identity.ProjectID, int64) []identity.NodeID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]identity.NodeID(nil), l.holders...)
}

func (l *lab) held(by ...*node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders = nil
	for _, n := range by {
		l.holders = append(l.holders, n.id.ID)
	}
}

// front puts a relay before a node, for connections that are made from now on.
func (l *lab) front(n *node) *peertest.Relay {
	r := peertest.NewRelay(l.t, n.host.Addr().String())
	l.mu.Lock()
	l.members[n.id.ID] = r.Addr()
	l.mu.Unlock()
	return r
}

// bare is a member without a store.
func (l *lab) bare() *peer.Host {
	l.t.Helper()
	id, _, err := identity.LoadOrCreate(l.t.TempDir())
	l.check(err)
	h, err := peer.New(peer.Config{Identity: id, Listen: "127.0.0.1:0", Members: l.lookup})
	l.check(err)
	l.t.Cleanup(func() { _ = h.Close() })
	l.mu.Lock()
	l.members[id.ID] = h.Addr().(*net.TCPAddr)
	l.mu.Unlock()
	return h
}

func (l *lab) remove(n *node) {
	l.mu.Lock()
	delete(l.members, n.id.ID)
	l.mu.Unlock()
}

// start starts a node in a new directory.
func (l *lab) start() *node { return l.startIn(l.t.TempDir()) }

func (l *lab) startIn(dir string) *node {
	l.t.Helper()
	id, _, err := identity.LoadOrCreate(dir)
	l.check(err)
	log := l.log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	st, err := store.Open(l.t.Context(), store.Config{
		Dir: filepath.Join(dir, "store"), Identity: id, Logger: log, Bucket: l.bucket,
	})
	l.check(err)
	n := &node{lab: l, dir: dir, id: id, store: st}
	at, closing := &net.TCPAddr{}, func() error { return nil }
	if l.net != nil {
		host := l.net.Join(id.ID)
		n.plane, closing = host, host.Close
	} else {
		n.host, err = peer.New(peer.Config{Identity: id, Listen: "127.0.0.1:0", Members: l.lookup, Logger: log})
		l.check(err)
		n.plane, closing, at = plane.Of(n.host), n.host.Close, n.host.Addr().(*net.TCPAddr)
	}
	l.mu.Lock()
	l.members[id.ID] = at
	l.mu.Unlock()
	n.swarm, err = New(n.config(log))
	l.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.swarm.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		_ = closing()
		l.check(st.Close())
	})
	l.t.Cleanup(n.stop)
	return n
}

func (n *node) config(log *slog.Logger) Config {
	l := n.lab
	var small func(identity.NodeID, digest.Digest, identity.ProjectID) ([]byte, bool)
	if l.small {
		small = n.giveSmall
	}
	return Config{
		Small: small,
		Store: n.store, Host: n.plane, Holders: l, Pacer: l.pacer, Signer: n.id, Logger: log,
		Access: func(_ context.Context, from identity.NodeID, _ digest.Digest, pid identity.ProjectID) bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return pid == project && l.members[from] != nil && !l.denied[from]
		},
		KnownSigner: l.isMember,
		SiteOf:      func(id identity.NodeID) string { return "site-" + id.Short() },
		Registerer:  prometheus.NewRegistry(),
		Stall:       l.stall,
		Answer:      time.Minute,
		requestIdle: l.requestIdle, watchFor: l.watchFor,
	}
}

// giveSmall gives what is here of the lab's project to those that may have it.
func (n *node) giveSmall(from identity.NodeID, d digest.Digest, pid identity.ProjectID) ([]byte, bool) {
	n.lab.mu.Lock()
	allowed := pid == project && n.lab.members[from] != nil && !n.lab.denied[from]
	n.lab.mu.Unlock()
	if !allowed {
		return nil, false
	}
	b, here, err := n.store.Catalog().ContentIn(pid, d)
	return b, here && err == nil
}

func (l *lab) check(err error) {
	if err != nil {
		l.t.Helper()
		l.t.Fatal(err)
	}
}

// content is deterministic bytes of a size.
func content(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)}).Read(b)
	return b
}

// put takes a blob in as a push would.
func (n *node) put(b []byte) Want {
	n.lab.t.Helper()
	return n.putAs(digest.SHA256, b)
}

func (n *node) putAs(alg digest.Algorithm, b []byte) Want {
	n.lab.t.Helper()
	ctx := n.lab.t.Context()
	id, err := n.store.CreateUpload(ctx)
	n.lab.check(err)
	u, err := n.store.Upload(ctx, id)
	n.lab.check(err)
	_, err = u.Append(ctx, bytes.NewReader(b))
	n.lab.check(err)
	d, err := u.Commit(ctx, alg.FromBytes(b), store.Link{PID: project, Repo: "r"})
	n.lab.check(err)
	return Want{Digest: d.Digest, Size: d.Size, PID: project, Class: catalog.Cached}
}

// fetching fetches a blob in the background, and gives what became of it.
func (n *node) fetching(w Want) <-chan error {
	done := make(chan error, 1)
	go func() { done <- n.swarm.Fetch(n.lab.t.Context(), w) }()
	return done
}

func (n *node) sent() int { return int(testutil.ToFloat64(n.swarm.metrics.unitsSent)) }
func (n *node) got() int  { return int(testutil.ToFloat64(n.swarm.metrics.unitsReceived)) }
func (n *node) failovers(reason string) int {
	return int(testutil.ToFloat64(n.swarm.metrics.failovers.WithLabelValues(reason)))
}
func (n *node) blamed(o *node) int {
	return int(testutil.ToFloat64(n.swarm.metrics.badUnits.WithLabelValues(o.id.ID.String())))
}

func (n *node) blamedList(o *node) int {
	return int(testutil.ToFloat64(n.swarm.metrics.badLists.WithLabelValues(o.id.ID.String())))
}

// has checks that the store holds exactly these bytes.
func (n *node) has(want []byte) {
	n.lab.t.Helper()
	n.hasAs(digest.SHA256, want)
}

func (n *node) hasAs(alg digest.Algorithm, want []byte) {
	n.lab.t.Helper()
	b, err := n.store.Open(n.lab.t.Context(), alg.FromBytes(want))
	n.lab.check(err)
	defer b.Close()
	got, err := io.ReadAll(b)
	n.lab.check(err)
	if !bytes.Equal(got, want) {
		n.lab.t.Fatal("the store holds other bytes")
	}
}

// faulty is a source that a test bends.
type faulty struct {
	source
	// read is called before bytes of a blob are handed out, with the offset; it
	// may change them, wait, or fail.
	read   func(ctx context.Context, off int64, b []byte) error
	record func(units.Record, *units.List) (units.Record, *units.List, error)
}

func (s *faulty) Open(ctx context.Context, d digest.Digest, pid identity.ProjectID) (store.Blob, error) {
	b, err := s.source.Open(ctx, d, pid)
	if err != nil {
		return nil, err
	}
	if a, ok := b.(part); ok {
		return &faultyPart{&faultyBlob{Blob: b, s: s, ctx: ctx}, a}, nil
	}
	return &faultyBlob{Blob: b, s: s, ctx: ctx}, nil
}

func (s *faulty) Record(ctx context.Context, d digest.Digest) (units.Record, *units.List, bool, error) {
	r, l, verified, err := s.source.Record(ctx, d)
	if err == nil && s.record != nil {
		r, l, err = s.record(r, l)
	}
	return r, l, verified, err
}

type faultyBlob struct {
	store.Blob
	s   *faulty
	ctx context.Context
	off int64
}

type faultyPart struct {
	*faultyBlob
	part
}

func (b *faultyBlob) Seek(off int64, whence int) (int64, error) {
	n, err := b.Blob.Seek(off, whence)
	b.off = n
	return n, err
}

func (b *faultyBlob) Read(p []byte) (int, error) {
	n, err := b.Blob.Read(p)
	if b.s.read != nil && n > 0 {
		if rerr := b.s.read(b.ctx, b.off, p[:n]); rerr != nil {
			return 0, rerr
		}
	}
	b.off += int64(n)
	return n, err
}

// serve is handle, for a host's streams.
func (s *server) serve(ctx context.Context, from identity.NodeID, st *peer.Stream) {
	s.handle(ctx, from, st)
}

// onEachPlane runs a test on the data plane, and on one in memory.
func onEachPlane(t *testing.T, run func(t *testing.T, l *lab)) {
	t.Run("libp2p", func(t *testing.T) { run(t, newLab(t)) })
	t.Run("in memory", func(t *testing.T) {
		l := newLab(t)
		l.net = planetest.NewNet()
		run(t, l)
	})
}

// bend makes a node serve from a faulty source.
func (n *node) bend(f *faulty) {
	f.source = supply{n.swarm}
	srv := newServer(n.config(slog.New(slog.DiscardHandler)), f, n.swarm.metrics)
	srv.crowds = n.swarm.crowds
	n.host.Handle(Protocol, srv.serve)
}

// gate lets a holder send only what lies below an offset, until it is opened.
type gate struct {
	mu      sync.Mutex
	below   int64
	changed chan struct{}
	reached chan struct{} // closed when somebody waits
	once    sync.Once
}

func newGate(below int64) *gate {
	return &gate{below: below, changed: make(chan struct{}), reached: make(chan struct{})}
}

func (g *gate) open(below int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.below = below
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) read(ctx context.Context, off int64, _ []byte) error {
	for {
		g.mu.Lock()
		ok, wait := off < g.below, g.changed
		g.mu.Unlock()
		if ok {
			return nil
		}
		g.once.Do(func() { close(g.reached) })
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func flipAt(from int64) func(context.Context, int64, []byte) error {
	return func(_ context.Context, off int64, b []byte) error {
		if off >= from {
			b[len(b)/2] ^= 1
		}
		return nil
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func unitsOf(n int) int { return layoutOf(int64(n)).units() }

func itoa(n int) string { return strconv.Itoa(n) }

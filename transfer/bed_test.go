package transfer_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
	"github.com/portolan/portolan/transfer/plane/planetest"
	"github.com/portolan/portolan/transfer/swarm"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is how long a condition may take: far more than it should, since other
// things run on the machine too.
const within = 30 * time.Second

// bed is a mesh in this process: real stores, hosts, swarms and catalogues on
// loopback. Only gossip (a call) and raft (a list of commands that is applied at
// each node) are not over the network.
type bed struct {
	t     testing.TB
	log   []*command.Envelope
	nodes []*site
	poll  time.Duration
	deaf  bool              // hints are lost
	truth time.Duration     // how often hints are compared; zero: as always
	net   *planetest.Net    // nil: the sites have real hosts
	far   time.Duration     // from any node to any other, one way; 0: as loopback has it
	disks map[string]string // where sites have their data; none: in a directory of the test

	raft sync.Mutex // one command after the other

	mu   sync.Mutex
	cut  map[[2]string]bool
	mute map[[2]string]bool // no streams between them, and hints
}

// site is one node of it.
type site struct {
	*bed
	name  string
	dir   string
	id    *identity.Identity
	state *state.State
	index uint64        // of the last command applied here
	lag   bool          // commands are not applied here
	port  int           // where it is reached
	clock time.Duration // off by so much
	ahead atomic.Int64  // the same, while it runs

	store  *store.Store
	host   *peer.Host // nil: the bed has a net
	plane  plane.Host
	serves chan struct{} // closed when sync takes questions
	close  func() error  // of either
	sync   *syncer.Sync
	swarm  *swarm.Swarm
	rec    *transfer.Reconciler
	door   *tags.Door
	home   *transfer.Residency
	counts *prometheus.Registry // of the reconciler
	wire   *prometheus.Registry // of swarm and sync
	cancel context.CancelFunc
	ended  sync.WaitGroup
	up     bool
	stuck  atomic.Pointer[stuck]
	caps   *budget.Budgets
	seen   atomic.Pointer[func(swarm.Want)] // is told of blobs that were fetched
	held   atomic.Int32                     // fetches of such that wait
	inGate atomic.Pointer[func()]           // is called by eventual writes that are past the gate of switches

	relayed *traffic // of the link to it, if it is far; else nil

	lostMu sync.Mutex
	lost   []catalog.Conflict // what was reported here
}

type option func(*bed)

// noHints loses all hints; polls alone find what is new.
func noHints(b *bed) { b.deaf, b.poll = true, 200*time.Millisecond }

// inMemory has no network.
func inMemory(b *bed) { b.net = planetest.NewNet() }

func newBed(t testing.TB, sites []string, opts ...option) *bed {
	t.Helper()
	b := &bed{t: t, poll: time.Minute, cut: map[[2]string]bool{}}
	for _, o := range opts {
		o(b)
	}
	for _, name := range sites {
		b.addSite(name)
	}
	t.Cleanup(func() {
		for _, n := range b.nodes {
			n.stop()
		}
	})
	return b
}

func (b *bed) addSite(name string) *site {
	b.t.Helper()
	n := &site{bed: b, name: name, dir: cmp.Or(b.disks[name], b.t.TempDir()), state: state.New()}
	var err error
	n.id, _, err = identity.LoadOrCreate(n.dir)
	must(b.t, err)
	for _, env := range b.log {
		n.apply(env)
	}
	b.mu.Lock()
	b.nodes = append(b.nodes, n)
	b.mu.Unlock()
	n.labelled(n.open)
	record := n.record()
	if len(b.nodes) == 1 {
		gen := make([]byte, 16)
		mesh, pid := identity.NewMeshID(), identity.NewProjectID()
		b.propose(&command.MeshCreate{MeshId: mesh[:], Site: name, Node: record, RaftGeneration: gen, LibraryProjectId: pid[:], AdminPasswordHash: "$argon2id$v=19$m=1,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"})
	} else {
		hash := sha256.Sum256([]byte(name))
		token := b.propose(&command.TokenCreate{Site: name, SecretHash: hash[:], ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()})
		b.propose(&command.NodeJoin{TokenId: token, SecretHash: hash[:], Site: name, Node: record})
	}
	n.labelled(n.start)
	return n
}

// labelled has the goroutines that fn starts carry the site's name in profiles.
func (n *site) labelled(fn func()) {
	pprof.Do(context.Background(), pprof.Labels("site", n.name), func(context.Context) { fn() })
}

func (n *site) record() *command.Node {
	id := n.id.ID
	box, sig := n.id.BoxKey()
	st := n.store.ID()
	return &command.Node{Id: id[:], BoxKey: box[:], BoxSignature: sig, StoreId: st[:], Host: "127.0.0.1",
		GossipPort: 7946, ControlPort: 7947, DataPort: uint32(n.port), RegistryUrl: "http://127.0.0.1:5000", Level: command.Level, Version: "test"}
}

// propose applies a command at all nodes that do not lag.
func (b *bed) propose(body proto.Message) int64 {
	b.t.Helper()
	return b.proposeAt(time.Now(), body)
}

// proposeAt is propose at some time of day.
func (b *bed) proposeAt(at time.Time, body proto.Message) int64 {
	b.t.Helper()
	b.raft.Lock()
	defer b.raft.Unlock()
	env, err := command.New("user:admin", at, body)
	must(b.t, err)
	b.log = append(b.log, env)
	var id int64
	for _, n := range b.nodes {
		if !n.lag {
			id = n.apply(env)
		}
	}
	return id
}

func (n *site) apply(env *command.Envelope) int64 {
	n.t.Helper()
	n.index++
	r, err := n.state.Apply(n.index, env)
	must(n.t, err)
	return r.ID
}

// catchUp applies what a lagging node missed.
func (n *site) catchUp() {
	n.t.Helper()
	n.lag = false
	for _, env := range n.log[n.index:] {
		n.apply(env)
	}
}

// open opens what needs no other node's record.
func (n *site) open() {
	n.t.Helper()
	var err error
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("BED_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", n.name)
	}
	n.store, err = store.Open(context.Background(), store.Config{Dir: n.dir + "/store", Identity: n.id, Logger: log, Now: n.now,
		Catalog: catalog.Options{OnConflict: n.hasLost}})
	must(n.t, err)
	if n.net != nil {
		host := n.net.Join(n.id.ID)
		n.plane, n.close, n.port = host, host.Close, 1
	} else {
		n.listen(log)
	}
	n.serves = make(chan struct{})
	n.wire = prometheus.NewRegistry()
	n.sync, err = syncer.New(syncer.Config{
		Registerer: n.wire,
		Self:       n.id.ID, Site: n.name, Dir: n.dir, Store: n.store, State: n.state, Host: told{n.plane, n.serves},
		Announcer: hear{n}, Poll: n.poll, Truth: n.truth, Now: n.now, Logger: log,
	})
	must(n.t, err)
	n.caps = budget.New(n.name, func(id identity.NodeID) string { m, _ := n.state.View().Node(id); return m.Site })
	n.swarm, err = swarm.New(swarm.Config{
		Registerer: n.wire, Pacer: n.caps,
		Store: n.store, Host: n.plane, Holders: n.sync, Signer: n.id,
		Access: n.sync.Access, Small: n.sync.Small, Prove: n.sync.Prove,
		KnownSigner: func(id identity.NodeID) bool { _, ok := n.state.View().Node(id); return ok },
		SiteOf:      func(id identity.NodeID) string { m, _ := n.state.View().Node(id); return m.Site },
		Logger:      log,
	})
	must(n.t, err)
	n.counts = prometheus.NewRegistry()
	n.rec, err = transfer.New(transfer.Config{
		Registerer: n.counts,
		Self:       n.id.ID, Site: n.name, Store: n.store, State: n.state, Swarm: slowly{n.swarm, n}, Sync: n.sync, PushesTold: true, Now: n.now, Logger: log,
	})
	must(n.t, err)
	n.openDoor(log)
	n.home = transfer.NewResidency(transfer.ResidencyConfig{Self: n.id.ID, Site: n.name, State: n.state, Store: n.store, Sync: n.sync, Control: control{n}, Copies: n.rec,
		Settle: func() { n.door.Settle() }, Abandon: n.swarm.Abandon, Now: n.now, Logger: log})
}

// listen opens a host.
func (n *site) listen(log *slog.Logger) {
	n.t.Helper()
	var err error
	n.host, err = peer.New(peer.Config{
		Identity: n.id, Listen: net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)), Logger: log,
		Members: func(id identity.NodeID) (string, int, bool) {
			m, ok := n.state.View().Node(id)
			if !ok || n.isCut(n.name, m.Site) {
				return "", 0, false
			}
			return m.Host, m.DataPort, true
		},
	})
	must(n.t, err)
	n.port = n.host.Addr().(*net.TCPAddr).Port
	if n.far > 0 {
		n.relayed = newTraffic()
		pprof.Do(context.Background(), pprof.Labels("site", "links"), func(context.Context) {
			n.port = farFrom(n.t, n.host.Addr().String(), n.far, n.relayed)
		})
	}
	n.plane, n.close = plane.Of(n.host), n.host.Close
}

// openDoor opens what sets tags.
func (n *site) openDoor(log *slog.Logger) {
	n.t.Helper()
	var err error
	n.door, err = tags.New(tags.Config{Self: n.id.ID, Site: n.name, State: n.state, Catalog: n.store.Catalog(), Control: control{n}, Sync: n.sync,
		Copies: n.rec, Pushed: n.rec.Pushed, Deleting: n.rec.BeginPush, ClockOff: n.clockOff, Now: n.now, Logger: log})
	must(n.t, err)
}

// clockOff is what eventual writes ask once they are past the gate.
func (n *site) clockOff() (time.Duration, bool) {
	if fn := n.inGate.Load(); fn != nil {
		(*fn)()
	}
	return n.sync.ClockOff()
}

func (n *site) now() time.Time { return time.Now().Add(n.clock + time.Duration(n.ahead.Load())) }

func (n *site) start() {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	caps := func(ctx context.Context) error { return n.caps.Run(ctx, n.state) }
	for _, run := range []func(context.Context) error{caps, n.sync.Run, n.swarm.Run, n.rec.Run, n.door.Run, n.home.Run} {
		n.ended.Go(func() {
			if err := run(ctx); err != nil {
				n.t.Errorf("%s: %v", n.name, err)
			}
		})
	}
	n.mu.Lock()
	n.up = true
	n.mu.Unlock()
	eventually(n.t, n.name+" takes questions", func() bool { return closed(n.serves) })
}

// told is a host that says when its site takes questions.
type told struct {
	plane.Host
	serves chan struct{}
}

func (h told) Handle(protocol string, handle plane.Handler) {
	h.Host.Handle(protocol, handle)
	if strings.HasPrefix(protocol, "/portolan/ask/") { // the last one
		close(h.serves)
	}
}

func (n *site) stop() {
	n.mu.Lock()
	up := n.up
	n.up = false
	n.mu.Unlock()
	if !up {
		return
	}
	n.cancel()
	n.ended.Wait()
	must(n.t, n.close())
	must(n.t, n.store.Close())
}

// restart is a new process on the same directory.
func (n *site) restart() {
	n.t.Helper()
	n.stop()
	n.open()
	n.start()
}

func (b *bed) isCut(x, y string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	pair := [2]string{min(x, y), max(x, y)}
	return b.cut[pair] || b.mute[pair]
}

// part cuts the links between two sites, both ways, and gossip notices; join mends
// them.
func (b *bed) part(x, y *site) {
	b.mu.Lock()
	b.cut[[2]string{min(x.name, y.name), max(x.name, y.name)}] = true
	b.mu.Unlock()
	x.host.CutOff(y.id.ID)
	y.host.CutOff(x.id.ID)
	x.sync.PeersChanged()
	y.sync.PeersChanged()
}

func (b *bed) join(x, y *site) {
	b.mu.Lock()
	delete(b.cut, [2]string{min(x.name, y.name), max(x.name, y.name)})
	b.mu.Unlock()
	x.sync.PeersChanged()
	y.sync.PeersChanged()
}

// hear carries hints: a call, to whoever can be reached.
type hear struct{ n *site }

func (h hear) Announce(kind byte, payload []byte) {
	for _, o := range h.others() {
		o.sync.Hint(h.n.id.ID, kind, slices.Clone(payload))
	}
}

func (h hear) others() []*site {
	if h.n.deaf {
		return nil
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	var out []*site
	for _, o := range h.n.nodes {
		if o != h.n && o.up && !h.n.cut[[2]string{min(o.name, h.n.name), max(o.name, h.n.name)}] {
			out = append(out, o)
		}
	}
	return out
}

func (h hear) Alive(id identity.NodeID) bool {
	return slices.ContainsFunc(h.others(), func(o *site) bool { return o.id.ID == id })
}

func (h hear) RTT(identity.NodeID) (time.Duration, bool) { return 0, false }

func (b *bed) site(name string) *site {
	for _, n := range b.nodes {
		if n.name == name {
			return n
		}
	}
	b.t.Fatalf("no site %s", name)
	return nil
}

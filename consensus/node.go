package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/telemetry"
	"github.com/portolan/portolan/node/wire"
)

// errStopping is internal: callers get an Unavailable.
var errStopping = errors.New("consensus: the node is stopping")

// Node is one member's part in the control plane.
type Node struct {
	cfg    Config
	log    *slog.Logger
	state  *state.State
	fsm    *fsm
	raft   *raft.Raft
	wal    *wal.WAL
	logs   *toldLog // raft's, above the wal
	mark   *marker
	trans  *raft.NetworkTransport
	guard  *guard
	memory *memory
	stream *streamLayer
	peers  *peers
	reach  *reach
	stats  metrics

	commits  *commits
	reads    shared[uint64]
	barriers shared[barrier]
	trips    trips
	keys     *keyring
	joined   string // the mesh's profile as of the join, or of the state at the start

	lifetime context.Context // ends with the node
	end      context.CancelFunc
	work     sync.WaitGroup     // edits under way
	door     sync.WaitGroup     // the guard's
	down     func() raft.Future // stops raft, once
	edits    chan struct{}      // bounds them
	joins    chan struct{}
	ready    chan struct{}
	fatal    chan error
	closing  sync.Once
	closeErr error

	removals removals
	votes    votes

	transferring atomic.Bool   // leadership is being handed over
	opened       chan struct{} // closed when raft is there
	outdated     atomic.Pointer[Outdated]
	isOut        chan struct{} // closed once outdated is set
	comingBack   atomic.Bool   // the raft directory was begun anew
	returning    Returning     // what a directory that was begun anew knows from before

	transferStuck atomic.Int64 // unix nanoseconds of the first refusal in a row; raft#696

	mu      sync.Mutex                    // leaf lock
	heard   map[identity.NodeID]heardNode // members by hearsay
	heardAt time.Time
	stopped bool
	told    map[string]struct{} // see sayOnce
	// seedGeneration is that of the join, or of the log that was set aside.
	seedGeneration []byte
	// committed is raft's configuration when it was last seen committed.
	committed []raft.Server
}

// Open opens the raft directory, brings the state to where it was and starts
// raft. The node is a member's only when Run runs; call Close if it never does.
func Open(cfg Config) (*Node, error) {
	if err := fill(&cfg); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, state: state.New(), heard: make(map[identity.NodeID]heardNode),
		edits: make(chan struct{}, maxInFlight), joins: make(chan struct{}, maxJoins), ready: make(chan struct{}), fatal: make(chan error, 1),
		opened: make(chan struct{}), isOut: make(chan struct{}), told: make(map[string]struct{})}
	n.lifetime, n.end = context.WithCancel(context.Background())
	n.stats.init()
	if n.cfg.DialRaft == nil {
		n.cfg.DialRaft = func(ctx context.Context, addr string, want identity.NodeID) (net.Conn, error) {
			return wire.DialRaft(ctx, addr, want, cfg.Identity, n)
		}
	}
	n.peers = &peers{node: n, conns: make(map[identity.NodeID]*peer)}
	n.reach = newReach(n)
	n.commits = newCommits(n)
	n.keys = newKeyring(n)
	n.reads.do, n.reads.work = n.askIndex, &n.work
	n.barriers.do, n.barriers.work = n.makeBarrier, &n.work
	n.stream = &streamLayer{Listener: n.cfg.RaftListener, self: n.cfg.Identity.ID, node: n, open: make(map[*dialled]struct{})}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func fill(cfg *Config) error {
	if cfg.Dir == "" || cfg.Identity == nil || cfg.RaftListener == nil || cfg.Self == nil {
		return errors.New("consensus: a directory, an identity, a raft listener and the node's own record are needed")
	}
	cfg.Self = Record(cfg.Identity, cfg.Self)
	if cfg.Profile.Election == 0 {
		cfg.Profile = LAN
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.keyAwayFor == 0 {
		cfg.keyAwayFor, cfg.keyBehindFor = keyAwayFor, keyBehindFor
	}
	if cfg.DialControl == nil {
		cfg.DialControl = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	return nil
}

func (n *Node) open() error {
	if err := finishSwap(n.cfg.Dir); err != nil {
		return err
	}
	walDir := filepath.Join(n.cfg.Dir, "wal")
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return fmt.Errorf("consensus: make directory: %w", err)
	}
	// The directory is this process's alone while the node is open.
	if err := durable.RemoveUnfinished(n.cfg.Dir); err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	var err error
	if n.mark, err = openMarker(n.cfg.Dir); err != nil {
		return err
	}
	hlog := telemetry.HCLog(n.log, "raft", repeatsRaft)
	if n.wal, err = wal.Open(walDir, wal.WithSegmentSize(walSegmentBytes), wal.WithLogger(hlog)); err != nil {
		return fmt.Errorf("consensus: open raft log in %s: %w", walDir, err)
	}
	n.logs = &toldLog{LogStore: n.wal, stored: n.commits.storedUpTo}
	logs, err := raft.NewLogCache(logCacheEntries, n.logs)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(n.cfg.Dir, snapshotsKept, hlog)
	if err != nil {
		return fmt.Errorf("consensus: open snapshots in %s: %w", n.cfg.Dir, err)
	}
	// An entry that was answered is in a file with a name that stays.
	if err := durable.SyncDirs(walDir, n.cfg.Dir, filepath.Dir(n.cfg.Dir)); err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	n.fsm = newFSM(n.state, n.mark)
	n.fsm.log = n.log
	if err := replay(n.fsm, n.wal, snaps, n.mark); err != nil {
		return err
	}
	if err := n.logs.findConfig(n.state.View().Index() + 1); err != nil {
		return err
	}
	if err := n.loadSeeds(); err != nil {
		return err
	}
	if err := n.useProfile(); err != nil {
		return err
	}
	if n.memory, err = openMemory(n.cfg.Dir, n.generation); err != nil {
		return err
	}
	n.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  n.stream,
		MaxPool: transportPool,
		// No pipelining: raft#612, a follower that gets heartbeats and no entries.
		MaxRPCsInFlight:         1,
		Timeout:                 transportTimeout,
		MsgpackUseNewTimeFormat: true,
		Logger:                  hlog,
	})
	// Shut until Run has found out whether this node may take part.
	n.guard = newGuard(n, n.trans)
	if err := errors.Join(n.loadOutdated(), n.loadReturning()); err != nil {
		return err
	}
	n.door.Go(func() { n.guard.run(n.lifetime) })
	if n.raft, err = raft.NewRaft(n.raftConfig(), n.fsm, logs, n.wal, snaps, n.guard); err != nil {
		return errors.Join(n.fsm.haltedBy(), fmt.Errorf("consensus: start raft: %w", err))
	}
	n.down = sync.OnceValue(n.raft.Shutdown)
	close(n.opened)
	n.commits.storedUpTo(n.raft.LastIndex())
	n.checkReady()
	return nil
}

func (n *Node) raftConfig() *raft.Config {
	p := n.cfg.Profile
	c := raft.DefaultConfig()
	c.ProtocolVersion = protocolVersion
	c.LocalID = raft.ServerID(n.cfg.Identity.ID.String())
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = p.Election, p.Election, p.Lease, p.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.TrailingLogs, c.SnapshotThreshold, c.SnapshotInterval = trailingLogs, snapshotThreshold, snapshotInterval
	c.ShutdownOnRemove = false
	c.Logger = telemetry.HCLog(n.log, "raft", repeatsRaft)
	c.NoLegacyTelemetry = true
	return c
}

// State gives the replicated state. It is there, and readable, from Open on.
func (n *Node) State() *state.State { return n.state }

// Ready is closed when this node has a state that knows it as a member, or as
// one that was: see Removed.
func (n *Node) Ready() <-chan struct{} { return n.ready }

func (n *Node) isReady() bool {
	select {
	case <-n.ready:
		return true
	default:
		return false
	}
}

// checkReady is called by Open and then by watch alone.
func (n *Node) checkReady() bool {
	view := n.state.View()
	_, member := view.Node(n.cfg.Identity.ID)
	if _, gone := view.Removed(n.cfg.Identity.ID); !member && !gone {
		return false
	}
	close(n.ready)
	return true
}

// Fresh reports whether the directory has never been part of a mesh.
func (n *Node) Fresh() bool {
	last := n.raft.LastIndex()
	n.mu.Lock()
	defer n.mu.Unlock()
	return last == 0 && len(n.heard) == 0 && n.state.View().Mesh().ID.IsZero()
}

// Bootstrap makes a new mesh with this node as its first member. The directory
// must be empty, or one in which a first Bootstrap did not come to its end. The
// command's node and profile are those of the Config, its keys are made here.
func (n *Node) Bootstrap(ctx context.Context, mesh *command.MeshCreate) error {
	if id := n.state.View().Mesh().ID; !id.IsZero() {
		return fmt.Errorf("consensus: %s belongs to the mesh %s already: start it without making a new one", n.cfg.Dir, id)
	}
	self := raft.ServerID(n.cfg.Identity.ID.String())
	err := n.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: self, Address: raft.ServerAddress(self)}}}).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		voters, learners := n.servers()
		if len(voters) != 1 || len(learners) != 0 || voters[0] != n.cfg.Identity.ID {
			return fmt.Errorf("consensus: %s has the log of another mesh: use an empty data directory", n.cfg.Dir)
		}
	} else if err != nil {
		return fmt.Errorf("consensus: make a new mesh: %w", err)
	}
	// One voter elects itself after one to two election timeouts.
	ctx, cancel := context.WithTimeout(ctx, maxProposeFor)
	defer cancel()
	for n.raft.State() != raft.Leader {
		select {
		case <-ctx.Done():
			return fmt.Errorf("consensus: make a new mesh: %w", ctx.Err())
		case <-n.lifetime.Done():
			return errStopping
		case <-time.After(pollLost):
		}
	}
	mesh = proto.Clone(mesh).(*command.MeshCreate)
	mesh.Profile, mesh.Node = n.cfg.Profile.Name, n.cfg.Self
	if mesh.Keys, err = n.newKeys(mesh.GetMeshId()); err != nil {
		return fmt.Errorf("consensus: make a new mesh: %w", err)
	}
	_, err = n.Propose(ctx, "system", mesh)
	return err
}

// Run is the member's life: it leads when it is elected, watches how far the
// majority is, keeps its own record true, and at the end of ctx hands leadership
// over and stops. It returns an error only if the node must not go on.
func (n *Node) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	run, stop := context.WithCancel(n.lifetime)
	wg.Go(func() { n.reach.run(run) })
	wg.Go(func() { n.lead(run) })
	wg.Go(func() { n.watch(run) })
	wg.Go(func() { n.keepRecord(run) })
	wg.Go(func() { n.commits.run(run) })
	wg.Go(func() { n.survey(run) })
	wg.Go(func() { newRotation(n).run(run) })
	wg.Go(func() { (&news{node: n}).run(run) })
	wg.Go(func() { n.takePart(run) })
	wg.Go(func() { n.remember(run) })
	var err error
	select {
	case <-ctx.Done():
		n.handOver()
	case <-n.fsm.halted:
		err = n.fsm.why
	case err = <-n.fatal:
	}
	stop()
	wg.Wait()
	return errors.Join(err, n.Close())
}

// stand makes the only voter of a mesh leader as soon as it is up again: it has
// no other node's word to wait for, and first edits would all be refused. It
// asks itself what a leader that hands over asks its successor, until it has heard
// that or stands after a time-out, like any other.
func (n *Node) stand(ctx context.Context) {
	self := n.cfg.Identity.ID
	id, addr := raft.ServerID(self.String()), raft.ServerAddress(self.String())
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: protocolVersion, ID: []byte(id), Addr: n.trans.EncodePeer(id, addr)}}
	tick := time.NewTicker(pollLost)
	defer tick.Stop()
	for {
		if voters, _ := n.servers(); len(voters) != 1 || voters[0] != self || n.raft.State() != raft.Follower || n.isOutdated() != nil {
			return
		}
		err := n.trans.TimeoutNow(id, addr, req, &raft.TimeoutNowResponse{})
		if err == nil {
			return
		}
		// On a machine that has much to do the connection to itself may take too long.
		// Without another try edits would wait for one time-out of raft's or two.
		n.log.Debug("the only voter could not stand yet", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watch opens Ready.
func (n *Node) watch(ctx context.Context) {
	for !n.isReady() {
		changed := n.state.Changed()
		if n.checkReady() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// stop ends the node for a reason that only a restart heals.
func (n *Node) stop(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}

// Close stops raft and frees the directory. Run does it at its end.
func (n *Node) Close() error {
	n.closing.Do(func() {
		n.mu.Lock()
		n.stopped = true
		n.mu.Unlock()
		n.end()
		n.stream.closeDialled()
		var errs []error
		if n.raft != nil {
			done := make(chan error, 1)
			go func() { done <- n.down().Error() }()
			select {
			case err := <-done:
				errs = append(errs, err)
			case <-time.After(shutdownFor):
				errs = append(errs, fmt.Errorf("consensus: raft does not stop within %s", shutdownFor))
			}
		}
		if n.trans != nil {
			errs = append(errs, n.trans.Close())
		} else {
			errs = append(errs, n.cfg.RaftListener.Close())
		}
		n.peers.close()
		n.work.Wait()
		n.door.Wait()
		if n.wal != nil {
			errs = append(errs, n.wal.Close())
		}
		if n.mark != nil {
			errs = append(errs, n.mark.close())
		}
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}

// servers gives raft's latest configuration.
func (n *Node) servers() (voters, learners []identity.NodeID) {
	f := n.raft.GetConfiguration() // answered from memory
	if f.Error() != nil {
		return nil, nil
	}
	return split(f.Configuration().Servers)
}

// split sorts servers into voters and learners.
func split(servers []raft.Server) (voters, learners []identity.NodeID) {
	for _, s := range servers {
		id, err := identity.ParseNodeID(string(s.ID))
		if err != nil {
			continue
		}
		if s.Suffrage == raft.Voter {
			voters = append(voters, id)
		} else {
			learners = append(learners, id)
		}
	}
	return voters, learners
}

const (
	seedsFile     = "seeds"
	maxSeedsBytes = 1 << 20
)

// loadSeeds keeps the members that the join named, and reads them back for as
// long as there is no state that says more. The file stays: a power cut may take
// the marker, and with it what the node knew.
func (n *Node) loadSeeds() error {
	if !n.state.View().Mesh().ID.IsZero() {
		return nil
	}
	path := filepath.Join(n.cfg.Dir, seedsFile)
	if n.cfg.Seeds != nil {
		if err := KeepSeeds(n.cfg.Dir, n.cfg.Profile.Name, nil, n.cfg.Seeds); err != nil {
			return err
		}
		n.hear(n.cfg.Seeds, 0)
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("consensus: read seeds: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSeedsBytes))
	if err != nil {
		return fmt.Errorf("consensus: read seeds: %w", err)
	}
	var s Seeds
	if err := proto.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("consensus: %s is damaged: join again with a new token: %w", path, err)
	}
	n.hear(s.GetNodes(), 0)
	n.joined, n.seedGeneration = s.GetProfile(), s.GetGeneration()
	return nil
}

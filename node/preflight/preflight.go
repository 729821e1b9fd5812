package preflight

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// dialFor bounds each dial of a check: five round trips of the longest link
	// (300 ms), with a lost packet.
	dialFor = 5 * time.Second
	// lookFor bounds a node's half: gossip's exchange takes its time where nobody
	// answers (10 s).
	lookFor = 14 * time.Second
	// CheckFor bounds the checks that one client of the API waits for.
	CheckFor = 50 * time.Second
	// answersAtOnce bounds the halves that a node tries for others.
	answersAtOnce = 4
)

// ErrBusy is returned while another check runs.
var ErrBusy = errors.New("a check of a path is under way at this node: try again when it has ended")

// errStarting is said by a node that has not opened its ports yet.
var errStarting = errors.New("the node is starting")

// Pacer holds bytes back for the sake of the links (*budget.Budgets).
type Pacer interface {
	Send(ctx context.Context, to identity.NodeID, c budget.Class, n int) (int, error)
	Receive(ctx context.Context, c budget.Class, n int) (int, error)
}

// Host is what a Checker needs of a data plane (plane.Of makes one of a *peer.Host).
type Host interface {
	Handle(protocol string, handle plane.Handler)
	Open(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error)
	OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error)
	DialAfresh(ctx context.Context, to identity.NodeID) error
}

// Config is what a Checker needs.
type Config struct {
	Identity *identity.Identity
	Members  wire.Members
	// View is the control state, by which nodes are known.
	View func() *state.View
	// Now is this node's clock.
	Now    func() time.Time
	Logger *slog.Logger
}

// Gossip is what a Checker needs of the gossip (*gossip.Mesh).
type Gossip interface {
	Alive(id identity.NodeID) bool
	Exchange(ctx context.Context, to identity.NodeID, addr string) error
	SendProbe(ctx context.Context, to identity.NodeID, addr string, t gossip.Token, size int) error
	Heard(ctx context.Context, t gossip.Token) bool
}

// Store is what a Checker needs of the store (*store.Store).
type Store interface {
	Room(bytes int64) (store.Room, error)
	Probe(ctx context.Context) (took time.Duration, err error)
}

// Parts are what a node that has started does its work with.
type Parts struct {
	Gossip Gossip
	// Host, Pacer and Store are nil at a witness.
	Host  Host
	Pacer Pacer
	Store Store
}

// Checker checks paths from this node, and answers the checks of others.
type Checker struct {
	UnimplementedPreflightServer
	cfg     Config
	running sync.Mutex
	answers chan struct{}

	mu    sync.Mutex
	parts *Parts // nil until Start
}

// New makes a Checker. Until Start it says that the node is starting.
func New(cfg Config) *Checker {
	return &Checker{cfg: cfg, answers: make(chan struct{}, answersAtOnce)}
}

// Start gives it what the node has started, and serves the data plane's side.
func (c *Checker) Start(p Parts) {
	c.mu.Lock()
	c.parts = &p
	c.mu.Unlock()
	if p.Host != nil {
		p.Host.Handle(streamProtocol, c.serveStream)
	}
}

func (c *Checker) started() (*Parts, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parts == nil {
		return nil, errStarting
	}
	return c.parts, nil
}

// Check tries the path to a node and back. Its error is that nothing could be
// tried: that a path is broken is in the report.
func (c *Checker) Check(ctx context.Context, id identity.NodeID) (*Report, error) {
	p, err := c.started()
	if err != nil {
		return nil, err
	}
	view := c.cfg.View()
	self, ok := view.Node(c.cfg.Identity.ID)
	if !ok {
		return nil, errors.New("the control state does not name this node")
	}
	to, ok := view.Node(id)
	if !ok || id == self.ID {
		return nil, fmt.Errorf("node %s is no other node of this mesh", id)
	}
	if !c.running.TryLock() {
		return nil, ErrBusy
	}
	defer c.running.Unlock()
	ctx, cancel := context.WithTimeout(ctx, CheckFor)
	defer cancel()
	begun := time.Now()
	k := &check{c: c, p: p, view: view, self: self, to: to}
	k.run(ctx)
	r := k.report()
	r.At, r.Took = c.cfg.Now(), time.Since(begun)
	return r, nil
}

// check is one that runs.
type check struct {
	c        *Checker
	p        *Parts
	view     *state.View
	self, to state.Node

	there   []*Finding // this node's dials
	sent    [2]gossip.Token
	wanted  [2]gossip.Token // what the other node sends
	came    [2]bool
	answer  *Answer
	way     string  // by which it answered
	refusal error   // why it did not
	clock   reading // of the best question
	clockOK bool
	out, in burst
}

func (k *check) run(ctx context.Context) {
	for _, t := range []*gossip.Token{&k.sent[0], &k.sent[1], &k.wanted[0], &k.wanted[1]} {
		_, _ = rand.Read(t[:]) // never fails
	}
	var wg sync.WaitGroup
	wg.Go(func() { k.there = k.c.look(ctx, k.p, k.self, k.to) })
	asked := make(chan struct{})
	wg.Go(func() {
		defer close(asked)
		k.ask(ctx, k.ways())
	})
	// Packets of gossip get lost: they go until the other side has answered.
	wg.Go(func() { k.c.sendProbes(ctx, k.p, k.to, k.sent[:], asked) })
	wg.Wait()
	if k.answer != nil {
		wait, cancel := context.WithTimeout(ctx, packetsAfter)
		for i, t := range k.wanted {
			k.came[i] = k.p.Gossip.Heard(wait, t)
		}
		cancel()
	}
	if k.p.Host != nil && !k.to.Witness {
		k.out = k.c.burstTo(ctx, k.p, k.to.ID)
		if k.in = k.out; !k.out.closed { // there is no line without the common connection
			k.in = k.c.burstFrom(ctx, k.p, k.to.ID)
		}
	}
}

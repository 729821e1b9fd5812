package tags

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// putAgain bounds how often a manifest is put again because it was deleted while
	// it was being tagged: whoever deletes in a loop is meant to win.
	putAgain = 3
	// projectWithin bounds how long a write waits for its own site to have written it
	// down, which takes milliseconds.
	projectWithin = 10 * time.Second
	// switchRetry is what clients are told while a project's tags switch.
	switchRetry = 2 * time.Second
)

// Control is the control plane (*consensus.Node).
type Control interface {
	// Propose makes an edit; it returns when this node has applied it. Its errors are
	// *command.Error and *command.Unavailable.
	Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error)
	// CatchUp returns when the state here has every edit that was answered before.
	CatchUp(ctx context.Context) (uint64, error)
}

// Exchange asks the other sites (*sync.Sync).
type Exchange interface {
	Ready(ctx context.Context, node identity.NodeID, pid identity.ProjectID, index uint64) (syncer.Ready, error)
	PullProject(ctx context.Context, pid identity.ProjectID) (unreachable []string, err error)
	OnReady(fn func(ctx context.Context, pid identity.ProjectID, index uint64) (bool, string))
}

// Held are the sites that have the blobs of a push.
type Held interface {
	// Covered returns when as many of them as the push needs have the entry, too.
	Covered(ctx context.Context, dot catalog.Dot) error
}

// Copies makes pushes durable at several sites. Its errors are *NotDurable where
// too few sites could take them.
type Copies interface {
	// Hold returns when n sites durably hold the blobs.
	Hold(ctx context.Context, p state.Project, repo string, blobs []syncer.Piece, n int) (Held, error)
}

// Config is what a Door needs.
type Config struct {
	Self    identity.NodeID
	Site    string
	State   *state.State
	Catalog *catalog.Catalog
	Control Control
	Sync    Exchange
	// Copies may be nil: then every push is durable at this site alone.
	Copies Copies
	// Pushed is told of manifests that were put here, and of those that tags say now
	// by the control state's word. It must not block; may be nil.
	Pushed func(pid identity.ProjectID, repo string, d digest.Digest)
	// Deleting is asked before something is deleted, and end called after it. With a
	// wait this site takes no deletions for so long; nil: it always does.
	Deleting func() (end func(), wait time.Duration)
	// ClockOff says whether the clock here is too far off that of the others, and by
	// how much; nil: it never is.
	ClockOff func() (by time.Duration, off bool)
	Now      func() time.Time
	Logger   *slog.Logger
}

// Door sets and deletes tags.
type Door struct {
	cfg Config
	log *slog.Logger
	cat *catalog.Catalog

	// gate is held for reading by eventual writes, from the look at the mode to the
	// end of the commit: whoever takes it for writing knows that none is under way
	// that began under an older state.
	gate sync.RWMutex
	// home is held for reading by all that writes to a project, see atHome.
	home sync.RWMutex

	projected projected
	switching switches
	unhook    func()
}

// New makes a Door and hooks it to the exchange; Run starts it.
func New(cfg Config) (*Door, error) {
	if cfg.State == nil || cfg.Catalog == nil || cfg.Control == nil || cfg.Sync == nil || cfg.Site == "" {
		return nil, errors.New("transfer/tags: State, Catalog, Control, Sync and Site are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d := &Door{cfg: cfg, log: cfg.Logger, cat: cfg.Catalog, projected: newProjected(), switching: newSwitches()}
	cfg.Sync.OnReady(d.ready)
	d.cat.OnlyOver(func(pid identity.ProjectID) uint64 {
		v := cfg.State.View()
		p, _ := v.ProjectByPID(pid)
		return v.Spoken(p)
	}, func(pid identity.ProjectID) catalog.Ordered {
		v := cfg.State.View()
		p, _ := v.ProjectByPID(pid)
		sw, err := ordered(v, p)
		if err != nil {
			d.log.Error("what was ordered is not known: what it overwrote may be told as lost", "error", err)
		}
		return sw
	})
	commits, overruled := d.cat.OnCommit(d.committed), d.cat.OnOverruled(d.overruled)
	d.unhook = func() { commits(); overruled() }
	return d, nil
}

// Run keeps the catalogue at what the control state says, and carries out
// switches, until ctx ends.
func (d *Door) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer d.unhook()
	defer wg.Wait()
	wg.Go(func() { d.project(ctx) })
	wg.Go(func() { d.noteAll(ctx) })
	wg.Go(func() { d.carryOut(ctx) })
	<-ctx.Done()
	return nil
}

// refused is a *command.Error of this package's own.
func refused(code command.Code, format string, args ...any) error {
	return &command.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// find gives a project as the state has it now.
func (d *Door) find(pid identity.ProjectID) (state.Project, *state.View, error) {
	v := d.cfg.State.View()
	p, ok := v.ProjectByPID(pid)
	if !ok || p.Deleted() {
		return p, v, refused(command.CodeNotFound, "the project was deleted")
	}
	return p, v, nil
}

// busy refuses what sets or deletes tags while they switch.
func (d *Door) busy(p state.Project) error {
	waits := d.Waiting(p.PID)
	reason := fmt.Sprintf("the tags of project %s are switching from %s to %s", p.Name, p.Tags.Mode, p.Tags.To)
	var sites []string
	for _, w := range waits {
		sites = append(sites, w.Site)
	}
	return &command.Unavailable{Reason: reason, Sites: sites, RetryAfter: switchRetry}
}

// eventual runs a write of eventual tags: under the gate, if the mode is right
// and this site has all that was strong before.
func (d *Door) eventual(pid identity.ProjectID, write func() error) error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	p, v, err := d.find(pid)
	switch {
	case err != nil:
		return err
	case p.Tags.Switching():
		return d.busy(p)
	case p.Tags.Mode != state.EventualTags:
		return errOtherMode
	}
	if err := d.clockRight(); err != nil {
		return err // stamps are this clock's
	}
	switch generation, index, err := d.cat.Frozen(pid); {
	case err != nil:
		return err
	case index > v.Index() && generation == v.Mesh().Generation:
		// It said that it takes none (G6), and lost what it knew of the switch.
		return &command.Unavailable{RetryAfter: switchRetry, Reason: fmt.Sprintf("the control state of site %s is behind a switch of the tags of project %s that it has agreed to", d.cfg.Site, p.Name)}
	}
	switch {
	case p.Tags.Seq != 0:
		seen, err := d.cat.StrongSeen(pid)
		if err != nil {
			return err
		}
		if seen < p.Tags.Seq {
			return &command.Unavailable{RetryAfter: switchRetry, Reason: fmt.Sprintf("site %s has not got all tags that project %s had while they were strong "+
				"(if no site is left that has them: portolan project tags %s eventual --force)", d.cfg.Site, p.Name, p.Name)}
		}
	}
	if err := write(); !errors.Is(err, catalog.ErrUnheard) {
		return err
	}
	return &command.Unavailable{RetryAfter: switchRetry, Reason: fmt.Sprintf("the control state of site %s is behind: it has not heard of a switch of the tags of project %s", d.cfg.Site, p.Name)}
}

// errOtherMode: the mode changed since it was looked at. Look again.
var errOtherMode = errors.New("the tags' mode changed")

// inMode runs what is for the project's mode, again if the mode changes meanwhile.
func (d *Door) inMode(ctx context.Context, pid identity.ProjectID, eventual func() error, strong func(state.Project) error) error {
	for {
		p, _, err := d.find(pid)
		switch {
		case err != nil:
			return err
		case p.Tags.Switching():
			return d.busy(p)
		case p.Tags.Mode == state.StrongTags:
			err = strong(p)
		default:
			err = d.eventual(pid, eventual)
		}
		if !errors.Is(err, errOtherMode) || ctx.Err() != nil {
			return err
		}
	}
}

// ErrNoStrictRead is returned for a strict read of eventual tags.
var ErrNoStrictRead = errors.New("only projects with strong tags can be read strictly")

// CatchUp returns when reads here have every strong tag that was set before the
// call.
func (d *Door) CatchUp(ctx context.Context, pid identity.ProjectID) error {
	p, _, err := d.find(pid)
	if err != nil {
		return err
	}
	if p.Tags.Mode != state.StrongTags {
		return ErrNoStrictRead
	}
	index, err := d.cfg.Control.CatchUp(ctx)
	if err != nil {
		return err
	}
	return d.await(ctx, index)
}

package tags

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

const (
	// switchEvery is how often members are asked while a switch waits for them.
	switchEvery = time.Second
	// switchTurn: the member sites carry a switch out one after the other, each this
	// much later, so that one of them does it and another goes on if it dies.
	switchTurn = 3 * time.Second
	// switchAskWithin bounds the question to one member.
	switchAskWithin = 5 * time.Second
	// importBytes bounds the tags of one command, which may have 64 KiB.
	importBytes = 40 << 10
)

// Wait is a site that a switch waits for.
type Wait struct {
	Site   string
	Reason string
}

// switches is what is known of switches under way.
type switches struct {
	mu     sync.Mutex
	frozen map[identity.ProjectID]uint64 // index of the switch for which the gate was passed
	seenAt map[identity.ProjectID]time.Time
	waits  map[identity.ProjectID][]Wait
}

func newSwitches() switches {
	return switches{frozen: map[identity.ProjectID]uint64{}, seenAt: map[identity.ProjectID]time.Time{}, waits: map[identity.ProjectID][]Wait{}}
}

// Waiting gives the sites that a switch waits for, as far as this one has asked.
func (d *Door) Waiting(pid identity.ProjectID) []Wait {
	d.switching.mu.Lock()
	defer d.switching.mu.Unlock()
	return slices.Clone(d.switching.waits[pid])
}

// AskWaiting asks all member sites which of them have not done their part.
func (d *Door) AskWaiting(ctx context.Context, pid identity.ProjectID) []Wait {
	view := d.cfg.State.View()
	p, ok := view.ProjectByPID(pid)
	if !ok || !p.Tags.Switching() {
		return nil
	}
	waits, _ := d.askMembers(ctx, view, p)
	return waits
}

// ready says whether this node has done its part (G6): it knows of the switch,
// no eventual write of before is under way, and what was strong is written down.
func (d *Door) ready(ctx context.Context, pid identity.ProjectID, index uint64) (bool, string) {
	view := d.cfg.State.View()
	p, ok := view.ProjectByPID(pid)
	if !ok || p.Tags.Index != index {
		return false, "its control state is behind"
	}
	d.switching.mu.Lock()
	frozen := d.switching.frozen[pid] == index
	d.switching.mu.Unlock()
	if !frozen {
		// Who passes the gate after this sees the switch.
		d.gate.Lock()
		d.gate.Unlock() //nolint:staticcheck // SA2001: passing through is what it is for
		if p.Tags.To == state.StrongTags {
			// Before it says so: after a power cut the state here may be one of before the
			// switch, and what is taken under that would be late.
			if err := d.cat.Freeze(ctx, pid, view.Mesh().Generation, index); err != nil {
				return false, err.Error()
			}
		}
		d.switching.mu.Lock()
		d.switching.frozen[pid] = index
		d.switching.mu.Unlock()
	}
	seen, err := d.cat.StrongSeen(pid)
	switch {
	case err != nil:
		return false, err.Error()
	case seen < p.Tags.Seq:
		return false, "it has not got all strong tags yet"
	}
	return true, ""
}

// carryOut looks after switches until ctx ends.
func (d *Door) carryOut(ctx context.Context) {
	for {
		changed := d.cfg.State.Changed()
		var due <-chan time.Time
		if d.carryOutAll(ctx) {
			changed, due = nil, time.After(switchEvery) // whatever else is edited
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-due:
		}
	}
}

// carryOutAll reports whether a switch is under way that concerns this site.
func (d *Door) carryOutAll(ctx context.Context) bool {
	view := d.cfg.State.View()
	under := map[identity.ProjectID]bool{}
	for p := range view.StrongProjects() {
		if !p.Tags.Switching() || !view.MayRest(p, d.cfg.Site) {
			continue
		}
		under[p.PID] = true
		if !d.myTurn(view, p) {
			continue
		}
		if err := d.advance(ctx, view, p); err != nil && ctx.Err() == nil {
			d.log.Warn("a project's tags could not be brought to the other mode yet", "project", p.Name, "to", p.Tags.To.String(), "error", err)
		}
	}
	d.switching.mu.Lock()
	defer d.switching.mu.Unlock()
	for pid := range d.switching.seenAt {
		if !under[pid] {
			delete(d.switching.seenAt, pid)
			delete(d.switching.waits, pid)
			delete(d.switching.frozen, pid)
		}
	}
	return len(under) > 0
}

// members are the nodes that may end a switch.
func members(view *state.View, p state.Project) []state.Node {
	return nodes(view, func(site string) bool { return view.MayRest(p, site) })
}

// asked are the nodes that have to be ready: all members, and to strong tags also
// sites that leave the project, which may have pushes that nobody else has yet.
func asked(view *state.View, p state.Project) []state.Node {
	return nodes(view, func(site string) bool {
		return view.MayRest(p, site) || p.Tags.To == state.StrongTags && p.Residence(site) == state.Leaving
	})
}

func nodes(view *state.View, at func(site string) bool) []state.Node {
	var out []state.Node
	for _, n := range view.Nodes() {
		if !n.Witness && at(n.Site) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b state.Node) int { return cmp.Compare(a.Site, b.Site) })
	return out
}

// myTurn: the members take turns from one that depends on the switch.
func (d *Door) myTurn(view *state.View, p state.Project) bool {
	all := members(view, p)
	me := slices.IndexFunc(all, func(n state.Node) bool { return n.ID == d.cfg.Self })
	if me < 0 {
		return false
	}
	d.switching.mu.Lock()
	since, ok := d.switching.seenAt[p.PID]
	if !ok {
		since = d.cfg.Now()
		d.switching.seenAt[p.PID] = since
	}
	d.switching.mu.Unlock()
	first := int(p.Tags.Index % uint64(len(all)))
	turn := (me - first + len(all)) % len(all)
	return d.cfg.Now().Sub(since) >= time.Duration(turn)*switchTurn
}

// advance asks all members, and ends the switch once they are ready.
func (d *Door) advance(ctx context.Context, view *state.View, p state.Project) error {
	waits, vectors := d.askMembers(ctx, view, p)
	d.switching.mu.Lock()
	d.switching.waits[p.PID] = waits
	d.switching.mu.Unlock()
	if len(waits) > 0 && !p.Tags.Force {
		return nil
	}
	end := &command.TagsMode{Id: p.ID, Step: command.TagsMode_STEP_END, Index: p.Tags.Index, NodeId: d.cfg.Self[:]}
	for _, w := range waits {
		end.Late = append(end.Late, w.Site)
	}
	if len(waits) > 0 && slices.Contains(end.GetLate(), d.cfg.Site) {
		return errors.New("this site itself is not ready")
	}
	if p.Tags.To == state.StrongTags {
		if merged, err := d.merge(ctx, p.PID, vectors); err != nil || !merged {
			return err
		}
		seen, err := d.cat.Vector(p.PID)
		if err != nil {
			return err
		}
		said, err := d.say(p, seen)
		if err != nil {
			return err
		}
		done, err := d.importTags(ctx, p, seen, said)
		if err != nil {
			return d.callOff(ctx, p, err)
		}
		end.Count, end.Import = uint32(done.tags), done.attempt
		if end.Seen, err = said.MarshalBinary(); err != nil {
			return err
		}
	}
	if err := d.propose(ctx, end); err != nil {
		return err
	}
	d.log.Info("a project's tags have another mode now", "project", p.Name, "mode", p.Tags.To.String(), "late", end.GetLate())
	return nil
}

func (d *Door) propose(ctx context.Context, body proto.Message) error {
	_, err := d.cfg.Control.Propose(ctx, "node:"+d.cfg.Self.String(), body)
	return err
}

func (d *Door) askMembers(ctx context.Context, view *state.View, p state.Project) ([]Wait, []catalog.Vector) {
	ctx, cancel := context.WithTimeout(ctx, switchAskWithin)
	defer cancel()
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		waits   []Wait
		vectors []catalog.Vector
	)
	for _, n := range asked(view, p) {
		wg.Go(func() {
			r, err := d.cfg.Sync.Ready(ctx, n.ID, p.PID, p.Tags.Index)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				waits = append(waits, Wait{n.Site, "it does not answer"})
				d.log.Debug("a member does not answer about a switch", "site", n.Site, "error", err)
			case !r.Ready:
				waits = append(waits, Wait{n.Site, r.Reason})
			default:
				vectors = append(vectors, r.Vector)
			}
		})
	}
	wg.Wait()
	slices.SortFunc(waits, func(a, b Wait) int { return cmp.Compare(a.Site, b.Site) })
	return waits, vectors
}

// merge brings what the members had when they were ready here.
func (d *Door) merge(ctx context.Context, pid identity.ProjectID, vectors []catalog.Vector) (bool, error) {
	for pulled := false; ; pulled = true {
		mine, err := d.cat.Vector(pid)
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(vectors, func(v catalog.Vector) bool { return !mine.Dominates(v) }) {
			return true, nil
		}
		if pulled {
			return false, nil // at the next round
		}
		if _, err := d.cfg.Sync.PullProject(ctx, pid); err != nil {
			return false, err
		}
	}
}

// callOff ends a switch that cannot be carried out; what may pass is tried again.
func (d *Door) callOff(ctx context.Context, p state.Project, why error) error {
	var no *command.Error
	if !errors.As(why, &no) || no.Code == command.CodeConflict {
		return why
	}
	err := d.propose(ctx, &command.TagsMode{Id: p.ID, Step: command.TagsMode_STEP_CANCEL, Index: p.Tags.Index, Reason: no.Message})
	return errors.Join(fmt.Errorf("called off: %w", why), err)
}

package consensus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

const (
	// keyAwayFor is for how long a step of the gossip key's rotation waits for
	// members that never answer meanwhile: one that is cut off learns the keys from the
	// state when it is back, before it can hear gossip.
	keyAwayFor = 5 * time.Second
	// keyBehindFor is for how long it waits for members that answer and have not
	// taken the last step yet.
	keyBehindFor = time.Minute
	// keyAskEvery bounds the questions: the state may change thousands of times a
	// second.
	keyAskEvery = 250 * time.Millisecond
	// keyDeputyAfter is when a node does what the one before it should have done,
	// where the leader cannot (it is a witness, or has no box itself).
	keyDeputyAfter = 3 * time.Second
)

// rotation brings the keys to where the state says that they should be, one
// replicated step at a time:
//
//	gossip   due -> ADD: installed everywhere, decrypts -> USE: encrypts -> REMOVE of the old one
//	mesh     due -> ADD: seals -> what the old one sealed is sealed anew -> REMOVE of the old one
//
// beside it, BOX for members that cannot open a key yet. Each step is decided
// from the state alone and refused by it if another came first, so whoever leads
// next goes on. The leader works, if it can open the key; else the others who
// can, one after the other.
type rotation struct {
	node *Node

	away, behind time.Duration // keyAwayFor, keyBehindFor

	revision uint64                   // of the gossip keys, that installed waits for
	since    time.Time                // since when
	answered map[identity.NodeID]bool // of the members, since then
	asked    time.Time                // the last time that members were asked
	work     [3]time.Time             // by kind: since when there has been something to do
	told     map[secrets.Place]uint64 // secrets that do not open, and their version: told once
}

func newRotation(n *Node) *rotation {
	return &rotation{node: n, away: n.cfg.keyAwayFor, behind: n.cfg.keyBehindFor, told: make(map[secrets.Place]uint64)}
}

func (r *rotation) run(ctx context.Context) {
	n := r.node
	select {
	case <-ctx.Done():
		return
	case <-n.ready:
	}
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		seen := n.state.View()
		if r.next(ctx) {
			continue
		}
		// Most edits are of other things: thousands a second must cost nothing here.
		for again := false; !again; {
			changed := n.state.Changed()
			if !n.state.View().SameKeys(seen) {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			case <-tick.C:
				again = true
			}
		}
	}
}

// next does the next step that is this node's; false: there is none now.
func (r *rotation) next(ctx context.Context) bool {
	n := r.node
	view := n.state.View()
	for _, kind := range []command.KeyKind{gossipKey, meshKey} {
		rank, ok := r.rank(view, kind)
		if !ok {
			continue
		}
		body, say := r.step(ctx, view, kind)
		if body == nil {
			r.work[kind] = time.Time{}
			continue
		}
		if r.work[kind].IsZero() {
			r.work[kind] = time.Now()
		}
		if time.Since(r.work[kind]) < time.Duration(rank)*keyDeputyAfter {
			continue
		}
		return r.propose(ctx, body, say)
	}
	return false
}

// rank says when it is this node's turn: 0 is at once, false never. That is the
// leader's if it can do the work.
func (r *rotation) rank(view *state.View, kind command.KeyKind) (int, bool) {
	n := r.node
	_, leaderID := n.raft.LeaderWithID()
	leader, err := identity.ParseNodeID(string(leaderID))
	if err != nil {
		return 0, false
	}
	keys := view.Keys(kind)
	able := func(m state.Node) bool { return state.MayHold(m, kind) && opens(m, keys) }
	if !slices.ContainsFunc(view.Nodes(), able) {
		// Nobody can open all versions: whoever has the newest goes on with what
		// can be had. One that nobody can open any more is as good as none.
		able = func(m state.Node) bool {
			return state.MayHold(m, kind) && (len(keys) == 0 || keys[len(keys)-1].Boxes() == 0 || opens(m, keys[len(keys)-1:]))
		}
	}
	if m, ok := view.Node(leader); ok && able(m) {
		return 0, leader == n.cfg.Identity.ID && n.raft.State() == raft.Leader
	}
	rank := 0
	for _, m := range view.Nodes() {
		switch {
		case m.ID == n.cfg.Identity.ID:
			return rank, able(m)
		case able(m):
			rank++
		}
	}
	return 0, false
}

// opens reports whether a node has a box of each of the keys.
func opens(m state.Node, keys []state.Key) bool {
	for _, k := range keys {
		if _, ok := k.Box(m.ID); !ok {
			return false
		}
	}
	return true
}

// step decides what comes next for a kind of key, from the state alone; say is
// the line for people.
func (r *rotation) step(ctx context.Context, view *state.View, kind command.KeyKind) (body proto.Message, say string) {
	keys, st := view.Keys(kind), view.KeyState()
	if len(keys) == 0 {
		return r.add(view, kind, 1), "the first key is made"
	}
	for _, row := range keys {
		if boxes := r.boxes(view, row); len(boxes) > 0 {
			return &command.KeyStep{Kind: kind, Version: row.Version, Step: command.KeyStep_STEP_BOX, Boxes: boxes}, "members are given a key"
		}
	}
	newest := keys[len(keys)-1]
	if kind == meshKey {
		return r.meshStep(view, keys, newest)
	}
	switch {
	case newest.Version != st.GossipPrimary:
		if r.installed(ctx, view) {
			return &command.KeyStep{Kind: kind, Version: newest.Version, Step: command.KeyStep_STEP_USE}, "the new key is used"
		}
	case len(keys) > 1:
		if r.installed(ctx, view) {
			return &command.KeyStep{Kind: kind, Version: keys[0].Version, Step: command.KeyStep_STEP_REMOVE}, "the old key is removed"
		}
	case st.GossipDue:
		return r.add(view, kind, newest.Version+1), "a new key is installed"
	}
	return nil, ""
}

func (r *rotation) meshStep(view *state.View, keys []state.Key, newest state.Key) (body proto.Message, say string) {
	if view.KeyState().MeshDue && len(keys) < state.MaxMeshKeys {
		return r.add(view, meshKey, newest.Version+1), "a new key is used"
	}
	if len(keys) == 1 {
		return nil, ""
	}
	left := make(map[uint32]int)
	for s := range view.Secrets() {
		left[s.KeyVer]++
		if s.KeyVer == newest.Version {
			continue
		}
		sealed, err := r.sealAnew(view, s)
		if err != nil {
			if r.told[s.Place] == s.Version {
				continue
			}
			r.told[s.Place] = s.Version
			r.node.log.Error("a secret cannot be sealed anew, and the old mesh key stays: enter the secret again", "secret", s.Place, "err", err)
			continue
		}
		return &command.SecretSet{Object: s.Place.Object, Field: s.Place.Field, Sealed: sealed, IfVersion: s.Version}, ""
	}
	for _, row := range keys[:len(keys)-1] {
		if left[row.Version] == 0 {
			return &command.KeyStep{Kind: meshKey, Version: row.Version, Step: command.KeyStep_STEP_REMOVE}, "the old key is removed"
		}
	}
	return nil, ""
}

func (r *rotation) sealAnew(view *state.View, s state.Secret) ([]byte, error) {
	value, err := r.node.unseal(view, s)
	if err != nil {
		return nil, err
	}
	return r.node.seal(view, s.Place, value)
}

// add makes a new key, boxed to the members that shall have it.
func (r *rotation) add(view *state.View, kind command.KeyKind, version uint32) proto.Message {
	boxes := r.boxTo(view, view.WithoutBox(state.Key{Kind: kind}), kind, version, secrets.NewKey())
	if len(boxes) == 0 {
		return nil
	}
	return &command.KeyStep{Kind: kind, Version: version, Step: command.KeyStep_STEP_ADD, Boxes: boxes}
}

// boxes boxes a key to the members that should be able to open it and cannot.
func (r *rotation) boxes(view *state.View, row state.Key) []*command.KeyBox {
	missing := view.WithoutBox(row)
	if len(missing) == 0 {
		return nil
	}
	key, ok := r.node.keys.get(view, row.Kind, row.Version)
	if !ok {
		return nil
	}
	return r.boxTo(view, missing, row.Kind, row.Version, key)
}

func (r *rotation) boxTo(view *state.View, members []state.Node, kind command.KeyKind, version uint32, key secrets.Key) []*command.KeyBox {
	var out []*command.KeyBox
	for _, m := range members[:min(len(members), maxBoxesAtOnce)] {
		b, err := r.node.keys.box(view, m, kind, version, key)
		if err != nil {
			r.node.log.Error("a member cannot be given a key", "site", m.Site, "node", m.ID, "err", err)
			continue
		}
		out = append(out, b)
	}
	return out
}

// propose makes one step. That another node made it first is no news.
func (r *rotation) propose(ctx context.Context, body proto.Message, say string) bool {
	n := r.node
	_, err := n.Propose(ctx, "node:"+n.cfg.Identity.ID.String(), body)
	var refusal *command.Error
	switch {
	case errors.As(err, &refusal):
		n.log.Debug("a step of the keys was not needed", "err", err)
		return false
	case err != nil:
		n.log.Debug("a step of the keys is not made yet", "err", err)
		return false
	}
	if step, ok := body.(*command.KeyStep); ok {
		n.log.Info("keys: "+say, "key", state.KeyName(step.GetKind()), "version", step.GetVersion())
	}
	return true
}

// installed reports whether gossip may go on to the next step: every member uses
// the present revision of the keys, or has had its time.
func (r *rotation) installed(ctx context.Context, view *state.View) bool {
	n := r.node
	want := view.KeyState().GossipRevision
	if r.revision != want {
		r.revision, r.since, r.answered = want, time.Now(), make(map[identity.NodeID]bool)
	}
	if time.Since(r.asked) < keyAskEvery {
		return false
	}
	r.asked = time.Now()
	away, behind := r.ask(ctx, view, want)
	waited := time.Since(r.since)
	switch {
	case len(behind) == 0 && len(away) == 0:
		return true
	case waited >= r.behind, len(behind) == 0 && waited >= r.away:
		n.log.Info("keys: gossip goes on without members that have not taken the last step yet: they take it when they are back",
			"sites", slices.Concat(away, behind), "revision", want)
		return true
	}
	return false
}

// ask gives the sites of the members that have not answered since the last step,
// and of those whose gossip may use older keys.
func (r *rotation) ask(ctx context.Context, view *state.View, want uint64) (away, behind []string) {
	n := r.node
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election/2)
	defer cancel()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	for _, m := range view.Nodes() {
		wg.Go(func() {
			have, err := n.keys.installed(), error(nil)
			if m.ID != n.cfg.Identity.ID {
				var rep *PingReply
				if rep, err = n.ping(ctx, m.ID); err == nil {
					have = rep.GetGossipRevision()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			r.answered[m.ID] = r.answered[m.ID] || err == nil
			switch {
			case err != nil && !r.answered[m.ID]:
				away = append(away, m.Site)
			case err != nil, have < want:
				behind = append(behind, m.Site)
			}
		})
	}
	wg.Wait()
	slices.Sort(away)
	slices.Sort(behind)
	return away, behind
}

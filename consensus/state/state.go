package state

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
)

// maxRequests bounds the answers that are kept for repeated request ids. A retry
// comes within seconds; at 1000 edits a second this is four of them, and it is
// under a megabyte.
const maxRequests = 4096

// State is the replicated state. Apply, Batch and Restore are called by one
// goroutine; everything else by anyone.
type State struct {
	view atomic.Pointer[View]
	// answers finds the view's requests by their ids: for the goroutine that applies.
	answers map[string]request

	mu      sync.Mutex
	changed chan struct{}
}

// New gives an empty state.
func New() *State {
	s := &State{changed: make(chan struct{}), answers: make(map[string]request)}
	s.view.Store(newView())
	return s
}

// View gives the state as it is now.
func (s *State) View() *View { return s.view.Load() }

// Changed gives a channel that is closed when a view later than the present one
// is there. Take it before View, or a change in between is missed.
func (s *State) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *State) publish(v *View) {
	s.view.Store(v)
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

// UnsupportedError means that this binary cannot go on from here: what comes
// next was written by a newer one. Nothing of it was applied.
type UnsupportedError struct {
	Index  uint64 // raft index of the command, or of the snapshot
	Reason string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("the mesh has moved on to something that this version of portolan (command level %d) does not understand: %s at raft index %d; start a newer version on this data directory",
		command.Level, e.Reason, e.Index)
}

// errNoMesh answers every command before the first.
var errNoMesh = &command.Error{Code: command.CodeInvalid, Message: "there is no mesh yet: the first command makes one"}

// Apply applies one command. A refusal is a *command.Error; any other error, an
// *UnsupportedError above all, means that nothing was applied and that the node
// must stop (see the package's comment).
func (s *State) Apply(index uint64, env *command.Envelope) (command.Result, error) {
	b := s.Batch()
	res, err := b.Apply(index, env)
	b.Publish()
	return res, err
}

// Batch applies commands that come together. Nobody sees what they do before
// Publish, which must be called before the next Batch, Apply or Restore: it wakes
// those who wait for a change once, and not for each command.
type Batch struct {
	state *State
	view  *View
}

// Batch begins a batch.
func (s *State) Batch() *Batch { return &Batch{state: s, view: s.view.Load()} }

// Index is the raft index of the last command, the batch's own included.
func (b *Batch) Index() uint64 { return b.view.index }

// Publish makes what was applied the state.
func (b *Batch) Publish() {
	if b.view != b.state.view.Load() {
		b.state.publish(b.view)
	}
}

// Apply is State.Apply within the batch. After an error that is no refusal
// nothing more may be applied; what came before it stays.
func (b *Batch) Apply(index uint64, env *command.Envelope) (command.Result, error) {
	cur := b.view
	if index <= cur.index {
		return command.Result{}, fmt.Errorf("state: entry %d came when %d was applied already", index, cur.index)
	}
	known := command.Known(env.GetType()) && env.GetMinLevel() <= command.Level
	if !known && !command.CanIgnore(env.GetType()) {
		return command.Result{}, &UnsupportedError{Index: index, Reason: fmt.Sprintf("command type %d of level %d", uint32(env.GetType()), env.GetMinLevel())}
	}
	next := *cur
	next.index = index
	next.clock = max(cur.clock, env.GetProposedUnixNs())
	if !known {
		b.view = &next
		return command.Result{Index: index}, nil
	}
	body, err := env.Open()
	if err != nil {
		return command.Result{}, &UnsupportedError{Index: index, Reason: err.Error()}
	}
	if done, ok := b.state.answers[string(env.GetRequestId())]; ok {
		b.view = &next
		if done.code != 0 {
			return command.Result{Index: index}, &command.Error{Code: command.Code(done.code), Message: done.message}
		}
		return command.Result{Index: index, ID: done.result}, nil
	}
	tx := next
	id, err := tx.apply(env, body)
	var refusal *command.Error
	switch {
	case err == nil:
		next = tx
	case errors.As(err, &refusal):
		// The refused command's changes are dropped with tx.
	default:
		return command.Result{}, err
	}
	b.state.remember(&next, env.GetRequestId(), id, refusal)
	b.view = &next
	if refusal != nil {
		return command.Result{Index: index}, refusal
	}
	return command.Result{Index: index, ID: id}, nil
}

// remember keeps the answer for a repeated request, and forgets the oldest.
func (s *State) remember(v *View, requestID []byte, id int64, refusal *command.Error) {
	if len(requestID) == 0 {
		return
	}
	r := request{id: string(requestID), index: v.index, result: id}
	if refusal != nil {
		r.result, r.code, r.message = 0, uint32(refusal.Code), refusal.Message
	}
	// Earlier views may share the array: none of them reads beyond its own end, and
	// only the latest view is appended to.
	v.requests = append(v.requests, r)
	s.answers[r.id] = r
	for len(v.requests) > maxRequests {
		delete(s.answers, v.requests[0].id)
		v.requests = v.requests[1:]
	}
}

// apply changes v, which nobody else sees yet. On an error v is thrown away.
func (v *View) apply(env *command.Envelope, body proto.Message) (int64, error) {
	if m, ok := body.(*command.MeshCreate); ok {
		return v.meshCreate(m)
	}
	if v.mesh.ID.IsZero() {
		return 0, errNoMesh
	}
	if env.GetMinLevel() > v.mesh.Level {
		return 0, refuse(command.CodeConflict, "the edit needs command level %d and the mesh is at %d: upgrade all nodes first", env.GetMinLevel(), v.mesh.Level)
	}
	actor := env.GetActor()
	switch m := body.(type) {
	case *command.SetLevel:
		return v.setLevel(m)
	case *command.ProfileSet:
		return v.profileSet(m)
	case *command.VotersSet:
		return v.votersSet(m)
	case *command.MeshRecovered:
		return v.meshRecovered(m)
	case *command.TokenCreate:
		return v.tokenCreate(actor, m)
	case *command.TokenRevoke:
		return v.tokenRevoke(actor, m)
	case *command.TokenDelete:
		return v.tokenDelete(m)
	case *command.NodeJoin:
		return v.nodeJoin(m)
	case *command.NodeUpdate:
		return v.nodeUpdate(actor, m)
	case *command.NodeRemove:
		return v.nodeRemove(actor, m)
	case *command.SiteRemove:
		return v.siteRemove(actor, m)
	case *command.SiteLeave:
		return v.siteLeave(actor, m)
	case *command.SiteDrain:
		return v.siteDrain(actor, m)
	case *command.SiteLabel:
		return v.siteLabel(m)
	case *command.SiteAway:
		return v.siteAway(m)
	case *command.ProjectCreate:
		return v.projectCreate(m)
	case *command.ProjectUpdate:
		return v.projectUpdate(m)
	case *command.ProjectSites:
		return v.projectSites(m)
	case *command.ProjectSiteDone:
		return v.projectSiteDone(m)
	case *command.ProjectDelete:
		return v.projectDelete(m)
	case *command.ProjectRestore:
		return v.projectRestore(m)
	case *command.ProjectPurge:
		return v.projectPurge(m)
	case *command.UserCreate:
		return v.userCreate(m)
	case *command.UserUpdate:
		return v.userUpdate(m)
	case *command.UserDelete:
		return v.userDelete(m)
	case *command.MemberSet:
		return v.memberSet(m)
	case *command.MemberDelete:
		return v.memberDelete(m)
	case *command.RuleCreate:
		return v.ruleCreate(m)
	case *command.RuleUpdate:
		return v.ruleUpdate(m)
	case *command.RuleDelete:
		return v.ruleDelete(m)
	case *command.BudgetSet:
		return v.budgetSet(m)
	case *command.SitePause:
		return v.sitePause(actor, m)
	case *command.ArtifactHold:
		return v.artifactHold(actor, m)
	case *command.RulePause:
		return v.rulePause(actor, m)
	case *command.KeysRotate:
		return v.keysRotate(m)
	case *command.KeyStep:
		return v.keyStep(m)
	case *command.SecretSet:
		return v.secretSet(m)
	case *command.RecoverySet:
		return v.recoverySet(actor, m)
	case *command.TagsSet:
		return v.tagsSet(actor, m)
	case *command.TagsDelete:
		return v.tagsDelete(actor, m)
	case *command.TagsMode:
		return v.tagsMode(actor, m)
	default:
		return 0, &UnsupportedError{Index: v.index, Reason: fmt.Sprintf("command %T", body)}
	}
}

// newID gives out the next mesh-wide object id.
func (v *View) newID() int64 {
	v.lastID++
	return v.lastID
}

// now is the command's time, made never to run back.
func (v *View) now() time.Time { return fromNanos(v.clock) }

// fromNanos keeps zero as the zero time.
func fromNanos(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func toNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func refuse(code command.Code, format string, args ...any) *command.Error {
	return &command.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

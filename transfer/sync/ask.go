package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// askBatch is how many digests go into one question: at most 140 bytes each,
	// and as many point reads at the other side.
	askBatch = 2000
	// pinLeast and pinMost bound, by the clock here, when a promise may first be ended:
	// that clock may be far from the asker's, and the push that relies on the promise
	// has not been answered yet.
	pinLeast = time.Hour
	pinMost  = 7 * 24 * time.Hour
)

// Short names of what a node says about a digest.
const (
	Absent = Holding_HOLDING_ABSENT
	Cached = Holding_HOLDING_CACHED
	Placed = Holding_HOLDING_PLACED
)

// Question asks what a node holds of a repository.
type Question struct {
	PID        identity.ProjectID
	Repository string // below the project; may be empty if only blobs are asked for
	Manifests  []digest.Digest
	Blobs      []digest.Digest
	// Root is the artifact that the digests belong to; empty: none. The node then
	// says why something of it is missing, if it knows.
	Root digest.Digest
}

// Answer stands in the order of the question.
type Answer struct {
	Manifests, Blobs []Holding
	Reason           string
}

// Has asks a node what it stores durably. This node answers for itself without
// the network.
func (s *Sync) Has(ctx context.Context, node identity.NodeID, ask Question) (Answer, error) {
	var out Answer
	manifests, blobs := ask.Manifests, ask.Blobs
	for len(manifests)+len(blobs) > 0 {
		q := &HasRequest{Repository: ask.Repository}
		if out.Manifests == nil && out.Blobs == nil {
			q.Root = ask.Root.String()
		}
		n := min(askBatch, len(manifests))
		q.Manifests, manifests = texts(manifests[:n]), manifests[n:]
		k := min(askBatch-n, len(blobs))
		q.Blobs, blobs = texts(blobs[:k]), blobs[k:]
		a, err := s.ask(ctx, node, &AskRequest{ProjectId: ask.PID[:], Question: &AskRequest_Has{Has: q}})
		if err != nil {
			return Answer{}, err
		}
		has := a.GetHas()
		if len(has.GetManifests()) != n || len(has.GetBlobs()) != k {
			return Answer{}, fmt.Errorf("node %s answered %d of %d digests", node.Short(), len(has.GetManifests())+len(has.GetBlobs()), n+k)
		}
		out.Manifests = append(out.Manifests, has.GetManifests()...)
		out.Blobs = append(out.Blobs, has.GetBlobs()...)
		out.Reason = cmp.Or(out.Reason, has.GetReason())
	}
	return out, nil
}

// TagAt asks a node where a tag points; false: it has no such tag.
func (s *Sync) TagAt(ctx context.Context, node identity.NodeID, pid identity.ProjectID, repository, tag string) (digest.Digest, bool, error) {
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Tag{Tag: &TagRequest{Repository: repository, Tag: tag}}})
	if err != nil || !a.GetTag().GetFound() {
		return "", false, err
	}
	d, err := units.ParseDigest(a.GetTag().GetDigest())
	return d, err == nil, err
}

// Pin asks a node to keep blobs for this node's store, until it has what was written
// here by the time given and this store has the blobs, and returns when its promise is
// durable there; the answers stand in the order of the digests: false, it has none such.
func (s *Sync) Pin(ctx context.Context, node identity.NodeID, pid identity.ProjectID, blobs []digest.Digest, until time.Time) ([]bool, error) {
	var pinned []bool
	for len(blobs) > 0 {
		n := min(askBatch, len(blobs))
		a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Pin{Pin: &PinRequest{
			Blobs: texts(blobs[:n]), UntilUnixNs: until.UnixNano(),
		}}})
		if err != nil {
			return nil, err
		}
		if len(a.GetPin().GetPinned()) != n {
			return nil, fmt.Errorf("node %s answered %d of %d pins", node.Short(), len(a.GetPin().GetPinned()), n)
		}
		pinned = append(pinned, a.GetPin().GetPinned()...)
		blobs = blobs[n:]
	}
	return pinned, nil
}

// ask puts one question to a node on a stream of its own.
func (s *Sync) ask(ctx context.Context, node identity.NodeID, q *AskRequest) (a *AskResponse, err error) {
	if node == s.cfg.Self {
		return s.reply(ctx, node, q)
	}
	defer func() { s.metrics.asks.WithLabelValues(outcome(err)).Inc() }()
	st, err := s.cfg.Host.Open(ctx, node, askProtocol)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = st.Reset()
		}
		_ = st.Close()
	}()
	st.SetIdle(answerWithin)
	q.Hello = s.hello()
	if err := peer.WriteMsg(st, q, maxQuestion); err != nil {
		return nil, err
	}
	a = new(AskResponse)
	if err := peer.ReadMsg(st, a, maxAnswer); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("ask node %s: %w", node.Short(), err)
	}
	if l := s.link(node); l != nil {
		l.measured(q.GetHello(), a.GetHello())
	}
	if r := a.GetRefusal(); r != nil {
		return nil, refused(r)
	}
	return a, nil
}

// serveAsk answers questions until the asker is done.
func (s *Sync) serveAsk(ctx context.Context, from identity.NodeID, st plane.Stream) {
	for {
		st.SetIdle(s.cfg.keepStream)
		q := new(AskRequest)
		if peer.ReadMsg(st, q, maxQuestion) != nil {
			return
		}
		cameAt := s.cfg.Now()
		st.SetIdle(answerWithin)
		a, err := s.reply(ctx, from, q)
		if err != nil {
			a = &AskResponse{Answer: &AskResponse_Refusal{Refusal: asRefusal(err)}}
		}
		a.Hello = s.answer(cameAt)
		if peer.WriteMsg(st, a, maxAnswer) != nil {
			_ = st.Reset()
			return
		}
	}
}

// asRefusal tells the asker why; errors of this store stay errors in its log.
func asRefusal(err error) *Refusal {
	var r *refusedError
	if errors.As(err, &r) {
		return refusal(r.code, r.message)
	}
	return refusal(Refusal_CODE_FAILED, err.Error())
}

// reply answers a question of a node, which may be this one.
func (s *Sync) reply(ctx context.Context, from identity.NodeID, q *AskRequest) (*AskResponse, error) {
	if w, ok := q.GetQuestion().(*AskRequest_Words); ok { // of no project
		return s.replyWords(s.cfg.State.View(), from, w.Words)
	}
	pid, err := identity.ProjectIDFromBytes(q.GetProjectId())
	if err != nil {
		return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
	}
	view := s.cfg.State.View()
	if r := s.shared(view, pid, from); r != nil {
		return nil, refused(r)
	}
	switch q := q.GetQuestion().(type) {
	case *AskRequest_Has:
		return s.replyHas(pid, q.Has)
	case *AskRequest_Pin:
		return s.replyPin(ctx, view, pid, from, q.Pin)
	case *AskRequest_Prove:
		return s.replyProve(ctx, view, pid, from, q.Prove)
	case *AskRequest_Ready:
		return s.replyReady(ctx, pid, q.Ready)
	case *AskRequest_Keep:
		return s.replyKeep(ctx, from, pid, q.Keep)
	case *AskRequest_Hold:
		return s.replyHold(ctx, from, q.Hold)
	case *AskRequest_Dominate:
		return s.replyDominate(ctx, from, pid, q.Dominate)
	case *AskRequest_Residence:
		return s.replyResidence(pid)
	case *AskRequest_Seen:
		return s.replySeen(pid, q.Seen)
	case *AskRequest_Cover:
		return s.replyCover(ctx, from, pid, q.Cover)
	case *AskRequest_Tag:
		info, err := s.cat.Tag(pid, q.Tag.GetRepository(), q.Tag.GetTag())
		switch {
		case errors.Is(err, catalog.ErrNotFound):
			return &AskResponse{Answer: &AskResponse_Tag{Tag: &TagResponse{}}}, nil
		case err != nil:
			return nil, err
		}
		return &AskResponse{Answer: &AskResponse_Tag{Tag: &TagResponse{Found: true, Digest: info.Digest.String()}}}, nil
	default:
		return nil, &refusedError{Refusal_CODE_INVALID, "a question that this version does not know"}
	}
}

func (s *Sync) replyHas(pid identity.ProjectID, q *HasRequest) (*AskResponse, error) {
	out := new(HasResponse)
	if root, err := units.ParseDigest(q.GetRoot()); err == nil && s.onExplain != nil {
		out.Reason = s.onExplain(pid, q.GetRepository(), root)
	}
	for _, text := range q.GetManifests() {
		d, err := units.ParseDigest(text)
		if err != nil {
			return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
		}
		h, err := s.manifestHolding(pid, q.GetRepository(), d)
		if err != nil {
			return nil, err
		}
		out.Manifests = append(out.Manifests, h)
	}
	for _, text := range q.GetBlobs() {
		d, err := units.ParseDigest(text)
		if err != nil {
			return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
		}
		h, err := s.blobHolding(pid, d)
		if err != nil {
			return nil, err
		}
		out.Blobs = append(out.Blobs, h)
	}
	return &AskResponse{Answer: &AskResponse_Has{Has: out}}, nil
}

// replyPin makes pins durable before it says so. The pin is for the asker's
// store as the control state has it, whatever the asker says of itself.
func (s *Sync) replyPin(ctx context.Context, view *state.View, pid identity.ProjectID, from identity.NodeID, q *PinRequest) (*AskResponse, error) {
	if !s.mayRestHere(view, pid) {
		// The asker did not know yet that this site leaves the project: a promise would
		// keep it here.
		return nil, &refusedError{Refusal_CODE_RESIDENCY, "the project leaves site " + s.cfg.Site}
	}
	if s.pushes.pin != nil {
		end, wait := s.pushes.pin()
		if wait > 0 {
			// What only this node holds has been counted, or is being.
			return nil, &refusedError{Refusal_CODE_FAILED, "the site is about to be removed and makes no promises at the moment"}
		}
		defer end()
	}
	n, _ := view.Node(from)
	now, until := s.cfg.Now(), time.Unix(0, q.GetUntilUnixNs())
	if least := now.Add(pinLeast); until.Before(least) {
		until = least
	}
	if most := now.Add(pinMost); until.After(most) {
		until = most
	}
	out := new(PinResponse)
	for _, text := range q.GetBlobs() {
		d, err := units.ParseDigest(text)
		if err != nil {
			return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
		}
		h, err := s.blobHolding(pid, d)
		if err != nil {
			return nil, err
		}
		if h != Absent {
			// The blob may have become `deleting` since: then it is absent.
			switch err := s.cat.Pin(ctx, catalog.Pin{Digest: d, For: n.Store, PID: pid, Until: until}); {
			case errors.Is(err, catalog.ErrNotFound):
				h = Absent
			case err != nil:
				return nil, fmt.Errorf("pin %s: %w", d, err)
			}
		}
		out.Pinned = append(out.Pinned, h != Absent)
	}
	return &AskResponse{Answer: &AskResponse_Pin{Pin: out}}, nil
}

func texts(ds []digest.Digest) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = d.String()
	}
	return out
}

// manifestHolding: a manifest is here when its entry and its bytes are. Small
// ones live with their entry and are as safe as it is.
func (s *Sync) manifestHolding(pid identity.ProjectID, repository string, d digest.Digest) (Holding, error) {
	info, err := s.cat.Manifest(pid, repository, d)
	if errors.Is(err, catalog.ErrNotFound) {
		return Absent, nil
	}
	if err != nil {
		return Absent, err
	}
	if info.Size <= catalog.MaxInlineManifest {
		_, ok, err := s.cat.ContentIn(pid, d)
		if ok || err != nil {
			return Placed, err
		}
	}
	return s.rowHolding(pid, d)
}

// blobHolding: a blob is here for a project when a repository of the project
// refers to it, by a manifest or a lease, and it is the project's content. Blobs of
// other projects are absent: a digest alone opens nothing, nor does an entry.
func (s *Sync) blobHolding(pid identity.ProjectID, d digest.Digest) (Holding, error) {
	_, _, linked, err := s.cat.LinkedIn(pid, d)
	if err != nil || !linked {
		return Absent, err
	}
	return s.rowHolding(pid, d)
}

func (s *Sync) rowHolding(pid identity.ProjectID, d digest.Digest) (Holding, error) {
	row, err := s.cat.BlobIn(pid, d)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return Absent, nil
	case err != nil:
		return Absent, err
	case row.Class == catalog.Cached:
		return Cached, nil
	}
	return Placed, nil
}

package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/backup"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/telemetry"
	"github.com/portolan/portolan/registryapi"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/harbor"
	"github.com/portolan/portolan/registryapi/mesh"
	v2 "github.com/portolan/portolan/registryapi/v2"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/siblings"
	"github.com/portolan/portolan/transfer/swarm"
)

// api joins the HTTP surface with what it asks.
func (n *node) api() (registryapi.Config, error) {
	var none registryapi.Config
	s, log := n.cfg.Settings, n.cfg.Logger
	who, err := access.New(access.Config{View: n.view, Identity: n.id, Logger: log, Now: n.cfg.Now, TrustedProxies: s.TrustedProxies, Metrics: n.metrics})
	if err != nil {
		return none, err
	}
	registry, err := v2.New(v2.Config{
		View: n.view, Access: who, Store: n.store, Site: s.Site, Logger: log, Now: n.cfg.Now,
		Source: source{n}, Claimer: claimer{n.reconciler}, Refresher: n.sync, Siblings: pulling{n.siblings}, Tags: tagger{n.tags}, Metrics: n.metrics,
		Limits: v2.Limits{Stall: s.ClientTimeout}, Redirect: s.StoreRedirect, Closed: n.closed, Pushing: n.reconciler.BeginPush,
	})
	if err != nil {
		return none, err
	}
	management, err := harbor.New(harbor.Config{
		View: n.view, Replica: n.raft, Proposer: n.raft, Access: who, Catalog: guarded{n.store.Catalog(), n.tags}, Refresh: n.sync.PullProject, Site: s.Site, Closed: n.closed, Version: n.cfg.Version, Logger: log,
	})
	if err != nil {
		return none, err
	}
	sites, err := mesh.New(mesh.Config{
		View: n.view, Replica: n.raft, Proposer: n.raft, Access: who, Catalog: guarded{n.store.Catalog(), n.tags}, Placement: placement{n.reconciler}, Refresh: n.sync.PullProject,
		Self: n.id.ID, Site: s.Site, Consensus: n.consensusStatus, Peer: n.peerStatus, JoinToken: n.joinToken,
		Removed: n.removedStatus, LastCopies: n.lastCopies, TagsWait: n.tagsWait, StepWaits: n.stepWaits, Transfers: n.transfers, CheckSite: n.checkSite, Scrub: n.scrub, StartScrub: n.store.StartScrub, Standing: n.standingOfSites,
		Backup: n.backup, CheckRecovery: backup.CheckRecipient,
		CheckRule: checkRule, PreviewRule: n.previewRule,
		Version: n.cfg.Version, Now: n.cfg.Now, Logger: log,
	})
	if err != nil {
		return none, err
	}
	return registryapi.Config{
		V2: registry, Token: who.TokenHandler(), Harbor: management, Mesh: sites,
		Metrics: who.Only(s.MetricsFor, telemetry.Handler(n.metrics)), Stall: s.ClientTimeout, Ready: n.ready, Logger: log,
	}, nil
}

// ready: the control state is here (or there would be no registry yet), and the
// catalogue was exchanged once. It stays so when the node is cut off, and no
// longer once it was removed.
func (n *node) ready(context.Context) error {
	if n.closed() != "" {
		return errRemoved
	}
	select {
	case <-n.sync.FirstDone():
		return nil
	default:
		return errNotSynced
	}
}

type notReady string

func (e notReady) Error() string { return string(e) }

// errRemoved says no more: anybody may ask.
const errRemoved = notReady("this node was removed from the mesh: its log and status say when, and by whom")

const errNotSynced = notReady("the first exchange of the catalogue with the other sites is under way")

// source lets the registry serve what this site does not hold.
type source struct{ n *node }

// OpenBlob implements v2.Source.
func (s source) OpenBlob(ctx context.Context, w v2.Want) (v2.Blob, error) {
	b, err := s.n.swarm.OpenBlob(ctx, swarm.Want{Digest: w.Digest, Size: w.Size, PID: w.PID, Class: catalog.Cached, Subject: w.Subject})
	if err != nil {
		return nil, unavailable(err)
	}
	return b, nil
}

// pulling lets the rest of an image come while its first blob does.
type pulling struct{ s *siblings.Siblings }

// Served implements v2.Siblings.
func (p pulling) Served(pid identity.ProjectID, repo string, d digest.Digest) {
	p.s.Served(pid, repo, d)
}

// Asked implements v2.Siblings.
func (p pulling) Asked(w v2.Want, missing bool) (end func()) {
	return p.s.Asked(siblings.Ask{Subject: w.Subject, PID: w.PID, Repo: w.Repo, Digest: w.Digest, Missing: missing})
}

// unavailable brings the swarm's own errors into the registry's words.
func unavailable(err error) error {
	switch {
	case errors.Is(err, swarm.ErrBusy):
		return &v2.Unavailable{Reason: err.Error(), RetryAfter: busyRetry, Err: err}
	case errors.Is(err, swarm.ErrBadHolders):
		return &v2.Unavailable{Reason: "no site in reach has sent the right bytes: try again later", RetryAfter: unreachableRetry, Err: err}
	}
	return err
}

// busyRetry is when a client may find a place among the transfers.
const busyRetry = 2 * time.Second

// unreachableRetry is when a client may find a lost site back.
const unreachableRetry = 5 * time.Second

// Available implements v2.Source: by hints alone, without a question.
func (s source) Available(ctx context.Context, w v2.Want) error {
	var gone []string
	for _, id := range s.n.sync.Holders(ctx, w.Digest, w.PID, w.Size) {
		if s.n.gossip.Alive(id) || s.n.host.Connected(id) {
			return nil
		}
		if site := s.n.siteOf(id); !slices.Contains(gone, site) {
			gone = append(gone, site)
		}
	}
	if len(gone) > 0 {
		return &store.Unreachable{Sites: gone, RetryAfter: unreachableRetry}
	}
	return store.ErrNotFound
}

// claimer lets a manifest rely on content of other sites.
type claimer struct{ r *transfer.Reconciler }

// Claim implements v2.Claimer.
func (c claimer) Claim(ctx context.Context, pid identity.ProjectID, repo string, want []v2.Want) (v2.Claim, error) {
	asked := make([]transfer.Descriptor, len(want))
	for i, w := range want {
		asked[i] = transfer.Descriptor{Digest: w.Digest, Size: w.Size}
	}
	got, err := c.r.Claim(ctx, pid, repo, asked)
	return v2.Claim{Missing: got.Missing, Unreachable: got.Unreachable}, err
}

// Accepted implements v2.Claimer.
func (c claimer) Accepted(pid identity.ProjectID, repo string, d digest.Digest) {
	c.r.Pushed(pid, repo, d)
}

// placement answers where an artifact is.
type placement struct{ r *transfer.Reconciler }

// Presence implements mesh.Placement.
func (p placement) Presence(ctx context.Context, q mesh.Question) ([]mesh.Presence, error) {
	sites, err := p.r.Status(ctx, transfer.Question(q))
	out := make([]mesh.Presence, len(sites))
	for i, s := range sites {
		out[i] = mesh.Presence(s)
	}
	return out, err
}

func (n *node) consensusStatus() mesh.Consensus {
	s := n.raft.Status()
	c := mesh.Consensus{
		VotersWanted: n.view().Mesh().WantsVoters(), RoundTrips: n.roundTrips(),
		Leader: s.Leader, LeaderSite: s.LeaderSite, Term: s.Term, Index: s.Index, Applied: s.Applied,
		Voters: s.Voters, Learners: s.Learners, Profile: n.raft.Profile().Name,
	}
	if trip := n.raft.RoundTrip(); trip > 0 {
		c.Suggested, c.RoundTrip = consensus.ProfileFor(trip).Name, float64(trip.Microseconds())/1000
	}
	return c
}

func (n *node) peerStatus(id identity.NodeID) (alive bool, rtt time.Duration) {
	if id == n.id.ID {
		return true, 0
	}
	rtt, _ = n.gossip.RTT(id)
	return n.gossip.Alive(id), rtt
}

func (n *node) joinToken(t mesh.JoinToken) (string, error) {
	return n.raft.Token(t.ID, t.Secret, t.Site, t.ExpiresAt).String(), nil
}

// siteOf names a node's site for people; a node that is no member by its ID.
func (n *node) siteOf(id identity.NodeID) string {
	if m, ok := n.view().Node(id); ok {
		return m.Site
	}
	return id.String()
}

// removedStatus is what a status says of this node's removal.
func (n *node) removedStatus() *mesh.Removed {
	r := n.removal()
	if r == nil {
		return nil
	}
	return &mesh.Removed{Site: r.Site, At: r.At, By: r.By, Message: r.String()}
}

// lastCopies answers what only one site holds.
func (n *node) lastCopies(ctx context.Context, q mesh.LastCopyQuestion) (mesh.LastCopies, error) {
	a, err := n.reconciler.LastCopies(ctx, transfer.LeaveQuestion(q))
	var silent *transfer.SilentError
	var pushing *transfer.PushingError
	switch {
	case errors.As(err, &silent):
		return mesh.LastCopies{}, &mesh.SilentSite{Site: silent.Site, Err: silent.Err}
	case errors.As(err, &pushing):
		return mesh.LastCopies{}, &mesh.PushingSite{UnderWay: pushing.UnderWay, Err: err}
	case errors.As(err, new(*transfer.UnheardError)), errors.As(err, new(*transfer.UnwillingError)), errors.As(err, new(*transfer.UnsharedError)):
		return mesh.LastCopies{}, &mesh.UnwillingSite{Err: err, Later: true}
	case errors.As(err, new(*transfer.ClockError)):
		return mesh.LastCopies{}, &mesh.UnwillingSite{Err: err}
	case errors.Is(err, transfer.ErrCursor):
		return mesh.LastCopies{}, mesh.ErrCursor
	case errors.Is(err, transfer.ErrNotAnnounced):
		return mesh.LastCopies{}, mesh.ErrNotAnnounced
	case err != nil:
		return mesh.LastCopies{}, err
	}
	out := mesh.LastCopies{Manifests: a.Manifests, Next: a.Next, Anew: a.Anew}
	if a.NeverLeft != nil {
		out.NeverLeft = (*mesh.NeverLeft)(a.NeverLeft)
	}
	for _, c := range a.Copies {
		out.Copies = append(out.Copies, mesh.LastCopy(c))
	}
	for _, u := range a.Unseen {
		out.Unseen = append(out.Unseen, mesh.Unseen(u))
	}
	return out, nil
}

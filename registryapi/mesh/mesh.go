package mesh

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// Prefix is where the API lives.
const Prefix = "/api/mesh/v1"

// Proposer changes the control state. It answers after the change is applied
// here. *consensus.Node is one.
type Proposer interface {
	Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error)
}

// Access says who asks and what he may do. *access.Access is one.
type Access interface {
	rest.Authenticator
	Can(access.Subject, state.Project, access.Action) bool
}

// Catalog is what this API reads and removes of the catalogue.
type Catalog interface {
	Tag(pid identity.ProjectID, repo, tag string) (catalog.TagInfo, error)
	Tags(pid identity.ProjectID, repo, after string, n int) ([]string, error)
	Repository(pid identity.ProjectID, repo string) (catalog.RepositoryInfo, error)
	Conflicts(pid identity.ProjectID, n int) ([]catalog.FoundConflict, error)
	// DeleteTag deletes a tag, with match only if it says one of those: a *rest.Error, or
	// one that rest knows, if not.
	DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, aclIndex uint64) error
}

// Placement asks sites what they hold. It answers within its own bounds: a site
// that does not is reported as not reachable.
type Placement interface {
	Presence(ctx context.Context, q Question) ([]Presence, error)
}

// JoinToken is what the text of a join token is made of, beside what the node
// knows itself (mesh, addresses, key pins).
type JoinToken struct {
	ID        int64
	Secret    [32]byte
	Site      string
	ExpiresAt time.Time
}

// Config is what the API needs.
type Config struct {
	View func() *state.View
	// Replica is the copy that View gives; nil: answers do not say how fresh they
	// are, and nobody can ask for a strict one.
	Replica   rest.Replica
	Proposer  Proposer
	Access    Access
	Catalog   Catalog
	Placement Placement
	// Refresh brings the project's entries of other sites here, within bounds of
	// its own, before this API says that something is not there; nil: it does not.
	Refresh func(context.Context, identity.ProjectID) (unreachable []string, err error)
	// Self is the node that answers, Site its site.
	Self identity.NodeID
	Site string
	// Consensus gives the control plane's state, as this node sees it.
	Consensus func() Consensus
	// Peer gives what gossip says of a node: is it alive, how far is it.
	Peer func(identity.NodeID) (alive bool, rtt time.Duration)
	// Removed says that this node is no member any more; nil, as a function or as
	// its answer: it is one.
	Removed func() *Removed
	// LastCopies finds what one site alone holds, in parts; see RemovalRequest.
	LastCopies func(context.Context, LastCopyQuestion) (LastCopies, error)
	// Transfers says what this node moves, from memory, without Site and Paused;
	// nil: nobody can ask.
	Transfers func() Transfers
	// Standing says what this node's site waits for of the others, whom it suspects,
	// and what signed records contradict each other, from memory; nil: nobody can ask.
	Standing func() ([]Behind, []Suspect, []Dispute)
	// Scrub says how far this node is with reading its blobs again, without Site, and
	// StartScrub has it begin anew; nil: nobody can ask.
	Scrub      func() Scrub
	StartScrub func()
	// CheckSite tries the path to another site and back; nil: nobody can ask.
	CheckSite func(ctx context.Context, site string) (SiteCheck, error)
	// CheckRule judges what the fields of a rule say; PreviewRule says what a rule
	// would move.
	CheckRule   func(state.Rule) []RuleProblem
	PreviewRule func(context.Context, PreviewQuestion) (Preview, error)
	// JoinToken writes a join token's text.
	JoinToken func(JoinToken) (string, error)
	// Backup writes the control state, sealed to the recovery key; a *command.Error
	// if there is none.
	Backup func(context.Context, io.Writer) error
	// CheckRecovery judges the public half of a recovery key.
	CheckRecovery func(string) error
	// TagsWait asks which sites the switch of a project's tags waits for; nil: nobody
	// knows.
	TagsWait func(context.Context, identity.ProjectID) []TagWait
	// StepWaits asks what the step of a site in a project waits for; nil: nobody
	// knows.
	StepWaits func(ctx context.Context, pid identity.ProjectID, site string) string
	// Version of the binary.
	Version string
	Now     func() time.Time
	Logger  *slog.Logger
	// Poll is how often a waiting call asks the sites again; 0: PollInterval.
	Poll time.Duration
}

// API answers /api/mesh/v1.
type API struct {
	cfg  Config
	rest *rest.API
}

// New declares all operations.
func New(cfg Config) (*API, error) {
	if cfg.View == nil || cfg.Proposer == nil || cfg.Access == nil || cfg.Catalog == nil || cfg.Placement == nil ||
		cfg.Consensus == nil || cfg.Peer == nil || cfg.JoinToken == nil || cfg.LastCopies == nil || cfg.Backup == nil || cfg.CheckRecovery == nil ||
		cfg.CheckRule == nil || cfg.PreviewRule == nil ||
		cfg.Now == nil || cfg.Logger == nil {
		return nil, errors.New("mesh: an incomplete Config")
	}
	if cfg.Poll <= 0 {
		cfg.Poll = PollInterval
	}
	a := newAPI(cfg)
	a.registerRemoval()
	a.registerProfile()
	a.registerVoters()
	a.registerTokens()
	a.registerKeys()
	a.registerRules()
	a.registerPreview()
	a.registerLabels()
	a.registerTags()
	a.registerGuarantees()
	a.registerResidency()
	a.registerPlacement()
	a.registerTransfers()
	a.registerSiteCheck()
	a.registerScrub()
	a.registerConflicts()
	return a, nil
}

// NewStatus declares the operations that only say how the mesh is: those of a
// node without content. It needs nothing of Config that serves the others.
func NewStatus(cfg Config) (*API, error) {
	if cfg.View == nil || cfg.Access == nil || cfg.Consensus == nil || cfg.Peer == nil || cfg.Now == nil || cfg.Logger == nil {
		return nil, errors.New("mesh: an incomplete Config")
	}
	return newAPI(cfg), nil
}

func newAPI(cfg Config) *API {
	a := &API{cfg: cfg, rest: rest.New(rest.Config{
		Title: "Portolan mesh", Version: "1.0", Prefix: Prefix, Auth: cfg.Access, Replica: cfg.Replica, Closed: closed(cfg.Removed), Logger: cfg.Logger,
	})}
	a.registerStatus()
	return a
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.rest.ServeHTTP(w, r) }

// OpenAPI gives the description that PREFIX/openapi.json answers with.
func (a *API) OpenAPI() ([]byte, error) { return a.rest.OpenAPI() }

// known does op, and once more after asking the other sites if the catalogue
// here does not have what op needs.
func (a *API) known(ctx context.Context, pid identity.ProjectID, op func() error) error {
	err := op()
	if a.cfg.Refresh == nil || !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	if _, rerr := a.cfg.Refresh(ctx, pid); rerr != nil {
		a.cfg.Logger.DebugContext(ctx, "other sites not asked", "project_id", pid, "error", rerr)
	}
	return op()
}

// propose makes a change in the name of who asks.
func (a *API) propose(ctx context.Context, body proto.Message) (command.Result, error) {
	return a.cfg.Proposer.Propose(ctx, rest.Actor(ctx), body)
}

// edit makes a change of what who asks has seen.
func (a *API) edit(ctx context.Context, e rest.Expect, body proto.Message) (*rest.Empty, error) {
	_, err := a.propose(ctx, body)
	return &rest.Empty{}, e.Lost(err)
}

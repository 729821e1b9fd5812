package mesh

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/rest"
)

const (
	// previewFor is how long a preview may take: below what proxies wait for.
	previewFor = 15 * time.Second
	// previewNames is how many artifacts are named, if nobody says.
	previewNames = 20
)

// RuleProblem is what is wrong with one field of a rule. It converts from
// rules.Problem.
type RuleProblem struct {
	Field   string
	Message string
}

// PreviewQuestion is what Config.PreviewRule is asked. It converts to
// transfer.PreviewQuestion.
type PreviewQuestion struct {
	Rule  state.Rule
	Names int
	For   time.Duration
}

// PreviewSite is what a rule would do at one site. Its fields are those of
// transfer.PreviewSite, in their order.
type PreviewSite struct {
	Site      string `json:"site"`
	Artifacts int    `json:"artifacts" doc:"Artifacts that it would want there and that no rule wants there now"`
	Blobs     int    `json:"blobs" doc:"Blobs that would move, each counted once"`
	HeldBlobs int    `json:"held_blobs" doc:"Blobs of them that are there already, as far as this site has heard"`
	Bytes     int64  `json:"bytes" doc:"Size of what would move"`
	HeldBytes int64  `json:"held_bytes" doc:"Size of what is there already"`
	Refused   int    `json:"refused" doc:"Artifacts that it names for this site, where their project may not rest"`
	Dropped   int    `json:"dropped" doc:"Artifacts that a rule wants there now and that none would; their copies stay"`
}

// Preview is what a rule would move. Its fields are those of
// transfer.PreviewAnswer, in their order.
type Preview struct {
	Matched   int           `json:"matched" doc:"Artifacts that its filters match"`
	Artifacts int           `json:"artifacts" doc:"Of these, those that are new at some site"`
	Looked    int           `json:"looked_at" doc:"Manifests that were looked at"`
	Sites     []PreviewSite `json:"sites" doc:"Sites where something would be otherwise, by name"`
	Names     []string      `json:"names" doc:"The first artifacts that would move"`
	Partial   bool          `json:"partial" doc:"There was no time or room for all: the numbers are lower bounds"`
	Unseen    []Unseen      `json:"unseen" doc:"Projects that the answering site cannot judge: they may not rest there"`
}

// PreviewRequest asks what a rule would move.
type PreviewRequest struct {
	RuleRequest
	Replaces string `json:"replaces,omitempty" maxLength:"255" doc:"Name or id of the rule that it would replace: then the answer is the difference"`
	Show     int    `json:"show,omitempty" minimum:"0" maximum:"1000" doc:"How many artifacts to name; 20 if not said"`
}

type previewOut struct{ Body Preview }

func (a *API) registerPreview() {
	rest.Register(a.rest, rest.Op{ID: "preview-rule", Method: http.MethodPost, Path: "/rules/preview", Tag: "rules", Who: rest.SystemAdmin,
		Summary: "What a rule would move, if it were made or changed so; nothing is changed"}, a.previewRule)
}

func (a *API) previewRule(ctx context.Context, in *struct{ Body PreviewRequest }) (*previewOut, error) {
	body, err := a.ruleCommand(in.Body.RuleRequest)
	if err != nil {
		return nil, err
	}
	q := PreviewQuestion{Rule: state.RuleOf(body), Names: in.Body.Show, For: previewFor}
	if q.Names == 0 {
		q.Names = previewNames
	}
	var named []string
	if in.Body.Replaces != "" {
		old, err := a.findRule(in.Body.Replaces)
		if err != nil {
			return nil, err
		}
		q.Rule.ID, named = old.ID, old.Sites
	}
	for _, s := range q.Rule.Sites {
		if _, ok := a.cfg.View().Site(s); !ok && !slices.Contains(named, s) {
			return nil, noSite(a.cfg.View(), s)
		}
	}
	out, err := a.cfg.PreviewRule(ctx, q)
	if err != nil {
		return nil, err
	}
	if out.Sites == nil {
		out.Sites = []PreviewSite{}
	}
	if out.Unseen == nil {
		out.Unseen = []Unseen{}
	}
	out.Names = list(out.Names)
	return &previewOut{Body: out}, nil
}

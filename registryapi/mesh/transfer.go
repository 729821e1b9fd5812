package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/registryapi/rest"
)

// MaxTransfers bounds the artifacts and the blobs that one answer lists.
const MaxTransfers = 1000

// Budget caps a link between sites.
type Budget struct {
	From    string `json:"from" doc:"Site that sends; empty: all that the other takes"`
	To      string `json:"to" doc:"Site that takes; empty: all that the other sends"`
	Mbit    uint32 `json:"mbit" doc:"1,000,000 bits a second"`
	Version uint64 `json:"resource_version"`
}

// BudgetRequest sets a Budget.
type BudgetRequest struct {
	From      string `json:"from,omitempty" maxLength:"255" doc:"Site that sends; empty: any"`
	To        string `json:"to,omitempty" maxLength:"255" doc:"Site that takes; empty: any"`
	Mbit      uint32 `json:"mbit" minimum:"1" maximum:"1000000" doc:"1,000,000 bits a second"`
	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse with 409 if the budget has another version; 0: any"`
}

// Transfers is what a node moves, and has to.
type Transfers struct {
	Site   string  `json:"site" doc:"Of the node that answers: it is what comes there"`
	Paused []Pause `json:"paused" doc:"Sites to which rules bring nothing until they are resumed"`
	// Held and PausedRules are what people said, of all sites.
	Held        []Held      `json:"held" doc:"Artifacts that rules do not bring until they are resumed"`
	PausedRules []RulePause `json:"paused_rules" doc:"Rules that bring nothing until they are resumed"`
	Ready       int         `json:"ready" doc:"Artifacts that wait for their turn"`
	Running     int         `json:"running" doc:"Artifacts that are being brought"`
	Failed      int         `json:"failed" doc:"Artifacts that are tried again later, or wait for people"`
	Artifacts   []Transfer  `json:"artifacts" doc:"At most 1000 of them: those under way, then those that failed, then the next ones"`
	Blobs       []Progress  `json:"blobs" doc:"At most 1000 blobs on their way, oldest first"`
	Links       []Link      `json:"links" doc:"What comes from each other site that sent something since the node started, by name"`
	Behind      []Behind    `json:"behind" doc:"How far the site is behind each other one, by name"`
	Suspects    []Suspect   `json:"suspects" doc:"Nodes that sent wrong bytes since this one started, the last first"`
	Disputes    []Dispute   `json:"disputes" doc:"Signed records of blobs that contradict each other, seen since this node started, the last first"`
}

// Pause is a site to which rules bring nothing until people resume it.
type Pause struct {
	Site string    `json:"site"`
	At   time.Time `json:"at"`
	By   string    `json:"by"`
}

// Transfer is an artifact that is wanted at the site and not wholly there.
type Transfer struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	State      string        `json:"state" enum:"ready,running,failed,paused"`
	PushedAt   time.Time     `json:"pushed_at"`
	Attempts   int           `json:"attempts" doc:"That ended early"`
	Reason     string        `json:"reason,omitempty" doc:"Why the last one did"`
	NextAt     *time.Time    `json:"next_at,omitempty" doc:"When it is tried again, if nothing that may help happens before"`
	Home       string        `json:"home,omitempty" doc:"Site that accepted it"`
	Missing    int64         `json:"missing_bytes" doc:"What is not here of total_bytes"`
	Total      int64         `json:"total_bytes" doc:"What was missing at first; 0: it was not looked at yet, or nothing is"`
	ETA        float64       `json:"eta_seconds,omitempty" doc:"At the rate of the attempt under way; 0: not known"`
}

// Progress is a blob on its way.
type Progress struct {
	Digest  digest.Digest `json:"digest"`
	Done    int64         `json:"done" doc:"Bytes that are here and checked"`
	Total   int64         `json:"total" doc:"Bytes; 0: not known yet"`
	From    string        `json:"from,omitempty" doc:"Site that sends now"`
	Clients int           `json:"clients" doc:"That read it as it arrives"`
	Since   time.Time     `json:"since"`
	ETA     float64       `json:"eta_seconds,omitempty" doc:"At the mean rate so far; 0: not known"`
}

// Suspect is a node that sent wrong bytes.
type Suspect struct {
	Node   string        `json:"node"`
	Site   string        `json:"site"`
	Blobs  int           `json:"blobs" doc:"For so many blobs it was dropped"`
	Digest digest.Digest `json:"digest" doc:"The last of them"`
	Since  time.Time     `json:"since" doc:"When it first did"`
	At     time.Time     `json:"at" doc:"When it last did"`
	Why    string        `json:"why" doc:"What it sent"`
}

// Dispute is two signed records of one blob that name different unit lists: one of the
// signers lied, or is broken.
type Dispute struct {
	Digest digest.Digest `json:"digest" doc:"Of the blob"`
	Roots  []SignedRoot  `json:"roots" doc:"What the two records say"`
	At     time.Time     `json:"at" doc:"When the second one was seen"`
}

// SignedRoot is what one node signed about a blob.
type SignedRoot struct {
	Node  string `json:"node" doc:"That signed"`
	Site  string `json:"site"`
	Root  string `json:"root" doc:"SHA-256 of the unit list"`
	False bool   `json:"false" doc:"Proven to be: the blob came whole under the other list"`
}

// Behind is how far the answering node's site is behind another.
type Behind struct {
	Site       string  `json:"site" doc:"The other, which accepted what is awaited"`
	Seconds    float64 `json:"seconds" doc:"Age of the oldest push of it that rules want here and that is not wholly here; 0: none is awaited"`
	Bytes      int64   `json:"bytes" doc:"What is missing of such pushes, as far as they were looked at"`
	Artifacts  int     `json:"artifacts" doc:"How many they are"`
	Unmeasured int     `json:"unmeasured,omitempty" doc:"Of them, those whose bytes are not known yet"`
	Total      int64   `json:"total_bytes" doc:"Bytes that were missing since nothing was awaited of the site last, those that came meanwhile included; 0: nothing is known to be"`
	ETA        float64 `json:"eta_seconds,omitempty" doc:"Until what is missing is here, at the mean rate of the last minutes; 0: not known, or nothing is missing"`
	Partial    bool    `json:"partial,omitempty" doc:"More is awaited than the queue takes, which is not in the numbers: it is looked for again when the queue has run low"`
	Catalogue  float64 `json:"catalogue_seconds" doc:"How long ago all that the site then knew was here; -1: never"`
}

// Link is what comes to the answering node from another site.
type Link struct {
	From     string  `json:"from" doc:"Site that sends"`
	Rate     float64 `json:"bytes_per_second" doc:"Bytes of blobs, over the last ten seconds"`
	Left     int64   `json:"left_bytes" doc:"What is missing of the blobs that come from there now; of one that several sites send, the part to be expected at their rates"`
	ETA      float64 `json:"eta_seconds,omitempty" doc:"Until what is left is here, at the rate; 0: not known, or nothing is left"`
	Received int64   `json:"received_bytes" doc:"Since the node started"`
	Mbit     uint32  `json:"mbit,omitempty" doc:"The cap on the link, 1,000,000 bits a second; 0: it has none of its own"`
}

type listBudgets struct{ Body []Budget }

type budgetDeleteIn struct {
	From string `query:"from" maxLength:"255" doc:"Site that sends; empty: any"`
	To   string `query:"to" maxLength:"255" doc:"Site that takes; empty: any"`
}

type pauseIn struct {
	Site string `path:"site" maxLength:"255" doc:"Name"`
}

type showTransfers struct{ Body Transfers }

func (a *API) registerTransfers() {
	rest.Register(a.rest, rest.Op{ID: "list-budgets", Method: http.MethodGet, Path: "/budgets", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Caps on the links between sites, by sender and receiver"}, func(context.Context, *struct{}) (*listBudgets, error) {
		out := &listBudgets{Body: []Budget{}}
		for b := range a.cfg.View().Budgets() {
			out.Body = append(out.Body, Budget{From: b.From, To: b.To, Mbit: b.Mbit, Version: b.Version})
		}
		return out, nil
	})
	rest.Register(a.rest, rest.Op{ID: "set-budget", Method: http.MethodPut, Path: "/budgets", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Cap what one site sends another, one sends in all, or one takes in all; transfers under way keep to it at once"}, a.setBudget)
	rest.Register(a.rest, rest.Op{ID: "delete-budget", Method: http.MethodDelete, Path: "/budgets", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Take a cap away"}, func(ctx context.Context, in *budgetDeleteIn) (*rest.Empty, error) {
		if _, ok := a.cfg.View().Budget(in.From, in.To); !ok {
			return nil, rest.NotFound("there is no budget from %q to %q: see them with: portolan budget list", in.From, in.To)
		}
		_, err := a.propose(ctx, &command.BudgetSet{From: in.From, To: in.To})
		return &rest.Empty{}, err
	})
	rest.Register(a.rest, rest.Op{ID: "pause-site", Method: http.MethodPut, Path: "/transfers/paused/{site}", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Stop what rules bring to a site; clients there go on pulling"}, a.pause(true))
	rest.Register(a.rest, rest.Op{ID: "resume-site", Method: http.MethodDelete, Path: "/transfers/paused/{site}", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Let what rules bring to a site go on"}, a.pause(false))
	a.registerHolds()
	if a.cfg.Transfers == nil {
		return
	}
	rest.Register(a.rest, rest.Op{ID: "list-transfers", Method: http.MethodGet, Path: "/transfers", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "What comes to this node's site, what has to, and who sent wrong bytes"}, func(context.Context, *struct{}) (*showTransfers, error) {
		out := a.cfg.Transfers()
		out.Site, out.Paused = a.cfg.Site, []Pause{}
		for p := range a.cfg.View().Pauses() {
			out.Paused = append(out.Paused, Pause{Site: p.Site, At: p.At, By: p.By})
		}
		out.Held, out.PausedRules = held(a.cfg.View())
		for i := range out.Links {
			if b, ok := a.cfg.View().Budget(out.Links[i].From, a.cfg.Site); ok {
				out.Links[i].Mbit = b.Mbit
			}
		}
		return &showTransfers{Body: out}, nil
	})
}

func (a *API) setBudget(ctx context.Context, in *struct{ Body BudgetRequest }) (*rest.Object[Budget], error) {
	r := in.Body
	res, err := a.propose(ctx, &command.BudgetSet{From: r.From, To: r.To, Mbit: r.Mbit, IfVersion: r.IfVersion})
	if err != nil {
		return nil, err
	}
	b, ok := a.cfg.View().Budget(r.From, r.To)
	if !ok {
		return nil, rest.Conflict("the budget was deleted at the moment it was set")
	}
	return rest.ObjectOf(res.ID, b.Version, Budget{From: b.From, To: b.To, Mbit: b.Mbit, Version: b.Version}), nil
}

func (a *API) pause(paused bool) func(context.Context, *pauseIn) (*rest.Empty, error) {
	return func(ctx context.Context, in *pauseIn) (*rest.Empty, error) {
		_, err := a.propose(ctx, &command.SitePause{Site: in.Site, Paused: paused})
		return &rest.Empty{}, err
	}
}

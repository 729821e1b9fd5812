package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// Held is an artifact that rules do not bring to a site until people resume it.
type Held struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	Site       string        `json:"site" doc:"Empty: all"`
	Cancelled  bool          `json:"cancelled" doc:"It is not waited for until it is resumed; else it is paused"`
	At         time.Time     `json:"at"`
	By         string        `json:"by"`
}

// RulePause is a rule that brings nothing to a site until people resume it.
type RulePause struct {
	Rule string    `json:"rule"`
	Site string    `json:"site" doc:"Empty: all"`
	At   time.Time `json:"at"`
	By   string    `json:"by"`
}

// HoldRequest asks to hold an artifact back.
type HoldRequest struct {
	Image  string `json:"image" minLength:"1" maxLength:"1024" doc:"PROJECT/NAME:TAG or PROJECT/NAME@DIGEST; a tag is what it gives now"`
	Site   string `json:"site,omitempty" maxLength:"63" doc:"Empty: all"`
	Cancel bool   `json:"cancel,omitempty" doc:"Do not wait for it; else it is paused"`
}

type resumeIn struct {
	Image string `query:"image" required:"true" minLength:"1" maxLength:"1024" doc:"PROJECT/NAME:TAG or PROJECT/NAME@DIGEST"`
	Site  string `query:"site" maxLength:"63" doc:"Empty: what was said of all"`
}

type rulePauseIn struct {
	Rule string `path:"rule" maxLength:"255" doc:"Name or id"`
	Site string `query:"site" maxLength:"63" doc:"Empty: all"`
}

func (a *API) registerHolds() {
	rest.Register(a.rest, rest.Op{ID: "hold-artifact", Method: http.MethodPut, Path: "/transfers/held", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Pause or cancel what rules bring of one artifact; clients go on pulling it"}, a.holdArtifact)
	rest.Register(a.rest, rest.Op{ID: "resume-artifact", Method: http.MethodDelete, Path: "/transfers/held", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Let what rules bring of one artifact go on"}, a.resumeArtifact)
	rest.Register(a.rest, rest.Op{ID: "pause-rule", Method: http.MethodPut, Path: "/transfers/paused-rules/{rule}", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Stop what one rule brings"}, a.pauseRule(true))
	rest.Register(a.rest, rest.Op{ID: "resume-rule", Method: http.MethodDelete, Path: "/transfers/paused-rules/{rule}", Tag: "transfers", Who: rest.SystemAdmin,
		Summary: "Let what one rule brings go on"}, a.pauseRule(false))
}

// held gives what people hold back, at most MaxTransfers of each.
func held(v *state.View) (artifacts []Held, rules []RulePause) {
	artifacts, rules = []Held{}, []RulePause{}
	for h := range v.Holds() {
		if len(artifacts) == MaxTransfers {
			break
		}
		name := h.PID.String()
		if p, ok := v.ProjectByPID(h.PID); ok {
			name = p.Name
		}
		artifacts = append(artifacts, Held{Repository: name + "/" + h.Repository, Digest: digest.Digest(h.Digest), Site: h.Site, Cancelled: h.Cancelled, At: h.At, By: h.By})
	}
	for p := range v.RulePauses() {
		if len(rules) == MaxTransfers {
			break
		}
		r, _ := v.RuleByID(p.RuleID) // it goes with its rule
		rules = append(rules, RulePause{Rule: r.Name, Site: p.Site, At: p.At, By: p.By})
	}
	return artifacts, rules
}

// artifact finds what an image names, here or by asking the other sites.
func (a *API) artifact(ctx context.Context, name string) (image, error) {
	img, err := a.open(ctx, name, access.Pull)
	if err != nil {
		return img, err
	}
	if img.tag == "" && img.digest == "" {
		img.tag = "latest"
	}
	err = a.known(ctx, img.project.PID, func() (err error) {
		img, err = a.resolve(img)
		return err
	})
	if err != nil {
		return img, a.unknown(img, err)
	}
	return img, nil
}

func (a *API) holdArtifact(ctx context.Context, in *struct{ Body HoldRequest }) (*rest.Empty, error) {
	img, err := a.artifact(ctx, in.Body.Image)
	if err != nil {
		return nil, err
	}
	how := command.ArtifactHold_HOLD_PAUSE
	if in.Body.Cancel {
		how = command.ArtifactHold_HOLD_CANCEL
	}
	_, err = a.propose(ctx, &command.ArtifactHold{ProjectId: img.project.PID[:], Repository: img.repo, Digest: img.digest.String(), Site: in.Body.Site, Hold: how})
	return &rest.Empty{}, err
}

func (a *API) resumeArtifact(ctx context.Context, in *resumeIn) (*rest.Empty, error) {
	img, err := a.artifact(ctx, in.Image)
	if err != nil {
		return nil, err
	}
	h, ok := a.cfg.View().Hold(img.project.PID, img.repo, img.digest.String(), in.Site)
	switch {
	case ok && h.Site == in.Site:
	case ok:
		return nil, rest.Conflict("%s is held back from all sites: resume it without a site", img)
	default:
		return nil, rest.NotFound("nothing holds %s back%s: see what is with: portolan transfers", img, fromSite(in.Site))
	}
	_, err = a.propose(ctx, &command.ArtifactHold{ProjectId: img.project.PID[:], Repository: img.repo, Digest: img.digest.String(), Site: in.Site})
	return &rest.Empty{}, err
}

func fromSite(site string) string {
	if site == "" {
		return " from all sites"
	}
	return " from site " + site
}

func atSite(site string) string {
	if site == "" {
		return " at all sites"
	}
	return " at site " + site
}

func (a *API) pauseRule(paused bool) func(context.Context, *rulePauseIn) (*rest.Empty, error) {
	return func(ctx context.Context, in *rulePauseIn) (*rest.Empty, error) {
		r, err := a.findRule(in.Rule)
		if err != nil {
			return nil, err
		}
		p, ok := a.cfg.View().RulePaused(r.ID, in.Site)
		switch {
		case paused:
		case !ok:
			return nil, rest.NotFound("rule %s is not paused%s: see what is with: portolan transfers", r.Name, atSite(in.Site))
		case p.Site != in.Site:
			return nil, rest.Conflict("rule %s is paused at all sites: resume it without a site", r.Name)
		}
		_, err = a.propose(ctx, &command.RulePause{RuleId: r.ID, Site: in.Site, Paused: paused})
		return &rest.Empty{}, err
	}
}

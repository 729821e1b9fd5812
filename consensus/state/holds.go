package state

import (
	"iter"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state/table"
	"github.com/portolan/portolan/node/identity"
)

const (
	// maxHolds bounds the table that each node holds: what people pause by hand,
	// some 300 bytes each. Who holds more back wants a rule.
	maxHolds = 10_000
	// maxRulePauses: sixty rules at sixty sites.
	maxRulePauses = 4096
)

// Hold keeps one artifact from being brought to a site, or to all, by rules.
type Hold struct {
	PID        identity.ProjectID
	Repository string // below the project
	Digest     string
	Site       string // empty: all
	// Cancelled: it is not waited for, until somebody resumes it. Otherwise it is
	// paused: it waits.
	Cancelled bool
	At        time.Time
	By        string // actor
}

// RulePause is a rule that brings nothing to a site, or to all, until people resume it.
type RulePause struct {
	RuleID int64
	Site   string // empty: all
	At     time.Time
	By     string // actor
}

// holds is part of View.
type holds struct {
	held       *table.Tree[Hold]      // by holdKey
	rulePauses *table.Tree[RulePause] // by rulePauseKey
}

func newHolds() holds {
	return holds{held: table.New[Hold](), rulePauses: table.New[RulePause]()}
}

func (h *holds) trees() []building { return []building{h.held, h.rulePauses} }

// holdKey is unique: no repository, digest or site has a zero byte.
func holdKey(pid identity.ProjectID, repository, digest, site string) []byte {
	return append(pid[:], strings.Join([]string{repository, digest, site}, "\x00")...)
}

func rulePauseKey(id int64, site string) []byte { return append(idKey(id), site...) }

func (v *View) putHold(h Hold) {
	v.held, _, _ = v.held.Insert(holdKey(h.PID, h.Repository, h.Digest, h.Site), h)
}

func (v *View) putRulePause(p RulePause) {
	v.rulePauses, _, _ = v.rulePauses.Insert(rulePauseKey(p.RuleID, p.Site), p)
}

// Hold finds what holds an artifact back from a site: what was said of the site,
// or else of all.
func (v *View) Hold(pid identity.ProjectID, repository, digest, site string) (Hold, bool) {
	h, ok := v.held.Get(holdKey(pid, repository, digest, site))
	if !ok {
		h, ok = v.held.Get(holdKey(pid, repository, digest, ""))
	}
	return h, ok
}

// HasHolds reports whether anything of a project is held back from anywhere.
func (v *View) HasHolds(pid identity.ProjectID) bool {
	for range v.held.Prefix(pid[:]) {
		return true
	}
	return false
}

// Holds yields all that is held back, by project.
func (v *View) Holds() iter.Seq[Hold] { return all(v.held, nil) }

// RulePaused says whether people stopped what a rule brings to a site, and who said
// so.
func (v *View) RulePaused(id int64, site string) (RulePause, bool) {
	p, ok := v.rulePauses.Get(rulePauseKey(id, site))
	if !ok {
		p, ok = v.rulePauses.Get(rulePauseKey(id, ""))
	}
	return p, ok
}

// RulePauses yields the paused rules, by rule.
func (v *View) RulePauses() iter.Seq[RulePause] { return all(v.rulePauses, nil) }

// SameHolds reports whether nothing was held back or let go between two views.
func (v *View) SameHolds(as *View) bool { return v.held == as.held && v.rulePauses == as.rulePauses }

func (v *View) artifactHold(actor string, m *command.ArtifactHold) (int64, error) {
	pid, err := identity.ProjectIDFromBytes(m.GetProjectId())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err.Error())
	}
	key := holdKey(pid, m.GetRepository(), m.GetDigest(), m.GetSite())
	if m.GetHold() == command.ArtifactHold_HOLD_NONE { // also of what is gone
		v.held, _, _ = v.held.Delete(key)
		return 0, nil
	}
	p, ok := v.ProjectByPID(pid)
	if !ok || p.Deleted() {
		return 0, refuse(command.CodeNotFound, "there is no project %s", pid)
	}
	if err := checkRepository(m.GetRepository()); err != nil {
		return 0, err
	}
	if err := checkDigest(m.GetDigest()); err != nil {
		return 0, err
	}
	if _, ok := v.Site(m.GetSite()); !ok && m.GetSite() != "" {
		return 0, refuse(command.CodeNotFound, "there is no site %s: see the sites with: portolan site list", clip(m.GetSite()))
	}
	if m.GetHold() != command.ArtifactHold_HOLD_PAUSE && m.GetHold() != command.ArtifactHold_HOLD_CANCEL {
		return 0, refuse(command.CodeInvalid, "an artifact is paused or cancelled, not %d", m.GetHold())
	}
	h := Hold{PID: pid, Repository: m.GetRepository(), Digest: m.GetDigest(), Site: m.GetSite(),
		Cancelled: m.GetHold() == command.ArtifactHold_HOLD_CANCEL, At: v.now(), By: clip(actor)}
	old, there := v.held.Get(key)
	switch {
	case there && old.Cancelled == h.Cancelled: // again is as good as once
		return p.ID, nil
	case !there && v.held.Len() >= maxHolds:
		return 0, refuse(command.CodeConflict, "%d artifacts are paused or cancelled, as many as are possible: resume some, or narrow a rule", maxHolds)
	}
	v.putHold(h)
	return p.ID, nil
}

func (v *View) rulePause(actor string, m *command.RulePause) (int64, error) {
	key := rulePauseKey(m.GetRuleId(), m.GetSite())
	r, ok := v.RuleByID(m.GetRuleId())
	_, paused := v.rulePauses.Get(key)
	_, site := v.Site(m.GetSite())
	switch {
	case !m.GetPaused():
		v.rulePauses, _, _ = v.rulePauses.Delete(key)
	case !ok:
		return 0, refuse(command.CodeNotFound, "there is no rule %d", m.GetRuleId())
	case !site && m.GetSite() != "":
		return 0, refuse(command.CodeNotFound, "there is no site %s: see the sites with: portolan site list", clip(m.GetSite()))
	case paused: // again is as good as once
	case v.rulePauses.Len() >= maxRulePauses:
		return 0, refuse(command.CodeConflict, "%d rules are paused at sites, as many as are possible: resume some, or disable rules", maxRulePauses)
	default:
		v.putRulePause(RulePause{RuleID: r.ID, Site: m.GetSite(), At: v.now(), By: clip(actor)})
	}
	return m.GetRuleId(), nil
}

// dropRulePauses is for a rule that goes, dropHolds for a project.
func (v *View) dropRulePauses(id int64) {
	for key := range v.rulePauses.Prefix(idKey(id)) {
		v.rulePauses, _, _ = v.rulePauses.Delete([]byte(key))
	}
}

func (v *View) dropHolds(pid identity.ProjectID) {
	for key := range v.held.Prefix(pid[:]) {
		v.held, _, _ = v.held.Delete([]byte(key))
	}
}

// holdRecords yields the snapshot's rows of what is held back.
func (v *View) holdRecords(yield func(*Record) bool) bool {
	for h := range v.Holds() {
		if !yield(&Record{Row: &Record_Hold{&HoldRow{ProjectId: h.PID[:], Repository: h.Repository, Digest: h.Digest, Site: h.Site,
			Cancelled: h.Cancelled, HeldUnixNs: toNanos(h.At), HeldBy: h.By}}}) {
			return false
		}
	}
	for p := range v.RulePauses() {
		if !yield(&Record{Row: &Record_RulePause{&RulePauseRow{RuleId: p.RuleID, Site: p.Site, PausedUnixNs: toNanos(p.At), PausedBy: p.By}}}) {
			return false
		}
	}
	return true
}

func (v *View) loadHold(h *HoldRow) error {
	pid, err := identity.ProjectIDFromBytes(h.GetProjectId())
	if err != nil {
		return err
	}
	v.putHold(Hold{PID: pid, Repository: h.GetRepository(), Digest: h.GetDigest(), Site: h.GetSite(), Cancelled: h.GetCancelled(),
		At: fromNanos(h.GetHeldUnixNs()), By: h.GetHeldBy()})
	return nil
}

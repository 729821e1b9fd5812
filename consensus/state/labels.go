package state

import (
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/command"
)

// maxLabels bounds a site's labels: everybody has them in memory.
const maxLabels = 32

// labelText is what a label's key and value are made of. Rules write them
// without quotes, so nothing of an expression's own signs is in it.
var labelText = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?$`)

// CheckLabel refuses a key or a value that an expression could not name.
func CheckLabel(s string) error {
	if !labelText.MatchString(s) {
		return refuse(command.CodeInvalid, "%q is not a label: use KEY or KEY=VALUE, each of 1 to 63 of a-z, 0-9 and . _ / -, beginning and ending with a letter or digit", clip(s))
	}
	return nil
}

// siteLabel sets and takes away labels of a site.
func (v *View) siteLabel(m *command.SiteLabel) (int64, error) {
	s, ok := v.SiteByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no site %d: see the sites with: portolan site list", m.GetId())
	}
	if err := checkVersion("site "+s.Name, s.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	labels := maps.Clone(s.Labels) // other views have the old map
	if labels == nil {
		labels = map[string]string{}
	}
	for _, key := range m.GetRemove() {
		delete(labels, key)
	}
	for _, l := range m.GetSet() {
		if err := CheckLabel(l.GetKey()); err != nil {
			return 0, err
		}
		if l.GetValue() != "" { // a label may be its key alone
			if err := CheckLabel(l.GetValue()); err != nil {
				return 0, err
			}
		}
		labels[l.GetKey()] = l.GetValue()
	}
	if len(labels) > maxLabels {
		return 0, refuse(command.CodeInvalid, "site %s would have %d labels: at most %d", s.Name, len(labels), maxLabels)
	}
	if maps.Equal(labels, s.Labels) {
		return s.ID, nil // again is as good as once
	}
	s.Labels = labels
	s.Version++
	v.putSite(s)
	return s.ID, nil
}

// siteAway notes that rules do not count on a site any more, or do again. It is
// no edit of anybody's: the site's version stays, so that nobody's edit is
// refused for it.
func (v *View) siteAway(m *command.SiteAway) (int64, error) {
	s, ok := v.SiteByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no site %d", m.GetId())
	}
	if s.Away() == m.GetAway() {
		return s.ID, nil
	}
	s.AwayAt = time.Time{}
	if m.GetAway() {
		s.AwayAt = v.now()
	}
	v.putSite(s)
	return s.ID, nil
}

func siteRow(s Site) *SiteRow {
	row := &SiteRow{Id: s.ID, Name: s.Name, CreatedUnixNs: toNanos(s.CreatedAt), Version: s.Version,
		DrainedUnixNs: toNanos(s.DrainedAt), DrainedBy: s.DrainedBy, AwayUnixNs: toNanos(s.AwayAt)}
	for _, l := range s.Removals {
		row.Leavings = append(row.Leavings, &LeavingRow{Index: l.Index, SaidUnixNs: toNanos(l.At), By: l.By})
	}
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		row.Labels = append(row.Labels, &command.Label{Key: key, Value: s.Labels[key]})
	}
	return row
}

func (v *View) loadSite(r *SiteRow) {
	s := Site{ID: r.GetId(), Name: r.GetName(), CreatedAt: fromNanos(r.GetCreatedUnixNs()), Version: r.GetVersion(),
		DrainedAt: fromNanos(r.GetDrainedUnixNs()), DrainedBy: r.GetDrainedBy(), AwayAt: fromNanos(r.GetAwayUnixNs())}
	for _, l := range r.GetLeavings() {
		s.Removals = append(s.Removals, Removal{Index: l.GetIndex(), At: fromNanos(l.GetSaidUnixNs()), By: l.GetBy()})
	}
	if len(r.GetLabels()) > 0 {
		s.Labels = make(map[string]string, len(r.GetLabels()))
	}
	for _, l := range r.GetLabels() {
		s.Labels[l.GetKey()] = l.GetValue()
	}
	v.putSite(s)
}

// Bounds of a rule's fields. What they mean is checked by those who evaluate
// them (transfer/rules), before an edit is proposed: here only what must hold
// for every node to keep the rule.
const (
	maxCopies     = 1000
	maxPriority   = 1000
	maxWindows    = 20
	maxExpression = 1024
)

// checkRuleFields judges what a rule has beside its patterns.
func checkRuleFields(m *command.Rule) error {
	if err := checkPatterns("types", m.GetTypes()); err != nil {
		return err
	}
	if err := checkPatterns("labels", m.GetLabels()); err != nil {
		return err
	}
	ways := 0
	for _, way := range []bool{m.GetAllSites(), len(m.GetSites()) > 0, m.GetSiteLabels() != ""} {
		if way {
			ways++
		}
	}
	switch {
	case ways != 1:
		return refuse(command.CodeInvalid, "the rule %q must name sites, all of them, or labels of sites: one of these, and not both", m.GetName())
	case len(m.GetSiteLabels()) > maxExpression:
		return refuse(command.CodeInvalid, "the rule %q: an expression on labels has at most %d bytes", m.GetName(), maxExpression)
	case m.GetCopies() > maxCopies:
		return refuse(command.CodeInvalid, "the rule %q wants %d copies: at most %d", m.GetName(), m.GetCopies(), maxCopies)
	case len(m.GetSites()) > 0 && int(m.GetCopies()) > len(set(m.GetSites())):
		return refuse(command.CodeInvalid, "the rule %q wants %d copies and names %d sites: name more, or want fewer", m.GetName(), m.GetCopies(), len(set(m.GetSites())))
	case m.GetPriority() > maxPriority || m.GetPriority() < -maxPriority:
		return refuse(command.CodeInvalid, "the rule %q has priority %d: use %d to %d", m.GetName(), m.GetPriority(), -maxPriority, maxPriority)
	case len(m.GetWindows()) > maxWindows:
		return refuse(command.CodeInvalid, "the rule %q has %d windows: at most %d", m.GetName(), len(m.GetWindows()), maxWindows)
	}
	return checkPatterns("windows", m.GetWindows())
}

// RuleOf reads a rule's fields and checks none; id, version and time stay empty.
func RuleOf(m *command.Rule) Rule {
	return Rule{Name: m.GetName(), Projects: slices.Clone(m.GetProjects()), Repositories: slices.Clone(m.GetRepositories()), Tags: slices.Clone(m.GetTags()),
		Types: slices.Clone(m.GetTypes()), Labels: slices.Clone(m.GetLabels()),
		AllSites: m.GetAllSites(), Sites: set(m.GetSites()), SiteLabels: m.GetSiteLabels(), Copies: int(m.GetCopies()),
		Priority: int(m.GetPriority()), Windows: slices.Clone(m.GetWindows()), Bandwidth: m.GetBandwidth(),
		FollowDeletions: m.GetFollowDeletions(), Disabled: m.GetDisabled()}
}

// Command gives the command's form of a rule.
func (r Rule) Command() *command.Rule {
	return &command.Rule{Name: r.Name, Projects: r.Projects, Repositories: r.Repositories, Tags: r.Tags, Types: r.Types, Labels: r.Labels,
		AllSites: r.AllSites, Sites: r.Sites, SiteLabels: r.SiteLabels, Copies: uint32(r.Copies), Priority: int32(r.Priority), Windows: r.Windows,
		Bandwidth: r.Bandwidth, FollowDeletions: r.FollowDeletions, Disabled: r.Disabled}
}

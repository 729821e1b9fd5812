package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/portolan/portolan/consensus/state"
)

// minBandwidth keeps a limit from being one at which nothing ever arrives: at
// it, an image of 100 MB takes two hours.
const minBandwidth = 100_000

// Problem is what is wrong with one field of a rule.
type Problem struct {
	Field   string // as the API calls it
	Message string // one sentence: what is wrong, and what to write
}

// Check says what is wrong with a rule before it is saved, field by field.
// Whether a site that it names is there is for the state machine to say, which
// knows what the rule named before.
func Check(r state.Rule) []Problem {
	var out []Problem
	add := func(field, format string, args ...any) {
		out = append(out, Problem{field, fmt.Sprintf(format, args...)})
	}
	if len(r.Projects) == 0 {
		add("projects", "the rule names no project: name at least one, or * for all")
	}
	for _, list := range []struct {
		field, what string
		patterns    []string
		alphabet    string // signs that such a name can have, beside small letters and digits
	}{
		{"projects", "project", r.Projects, "._-"}, {"repositories", "repository", r.Repositories, "._-/"},
		{"tags", "tag", r.Tags, "._-" + capitals}, {"types", "type", r.Types, "._-/+!#$&^" + capitals},
	} {
		for _, p := range list.patterns {
			if p == "" || !doublestar.ValidatePattern(p) {
				add(list.field, "%q is not a %s pattern: use names with *, **, ?, [a-z] and {a,b}", p, list.what)
			} else if bad := never(p, list.alphabet); bad != "" {
				add(list.field, "%q can match no %s ever: no %s's name has %q in it", p, list.what, list.what, bad)
			}
		}
	}
	for _, l := range r.Labels {
		key, pattern, _ := strings.Cut(l, "=")
		if key == "" || !doublestar.ValidatePattern(pattern) {
			add("labels", "%q is not a label: write KEY or KEY=PATTERN, an annotation of the manifest", l)
		}
	}
	checkSites(r, add)
	for _, w := range r.Windows {
		if _, err := parseWindow(w); err != nil {
			add("windows", "%s", err)
		}
	}
	if r.Bandwidth > 0 && r.Bandwidth < minBandwidth {
		add("bandwidth", "%d bits per second are too few: give %d at least, or 0 for no limit", r.Bandwidth, minBandwidth)
	}
	return out
}

func checkSites(r state.Rule, add func(field, format string, args ...any)) {
	if !r.AllSites && len(r.Sites) == 0 && r.SiteLabels == "" {
		add("sites", "the rule names no site: name at least one, or all, or an expression on labels of sites")
	}
	if r.SiteLabels != "" {
		if _, err := ParseSelector(r.SiteLabels); err != nil {
			add("site_labels", "%s", err)
		}
	}
	if r.Copies < 0 {
		add("copies", "%d copies are not possible: 0 for all of the sites, or how many", r.Copies)
	}
	if len(r.Sites) > 0 && r.Copies > len(r.Sites) {
		add("copies", "%d copies need %d sites, and the rule names %d: name more, or want fewer", r.Copies, r.Copies, len(r.Sites))
	}
}

const capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// never gives a sign that the pattern asks for literally and that no name can
// have; empty: it may match.
func never(pattern, alphabet string) string {
	if !strings.Contains(alphabet, "/") {
		// a/** and **/a match a, too.
		pattern = strings.TrimSuffix(strings.TrimPrefix(pattern, "**/"), "/**")
	}
	class, escaped := false, false
	for _, c := range pattern {
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
			continue
		case class:
			class = c != ']'
			continue
		case c == '[':
			class = true
			continue
		case slices.Contains([]rune("*?{},"), c):
			continue
		}
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(alphabet, c) {
			return string(c)
		}
	}
	return ""
}

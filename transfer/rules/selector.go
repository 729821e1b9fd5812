package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/portolan/portolan/consensus/state"
)

// maxConditions bounds an expression.
const maxConditions = 32

// condition is one part of an expression on labels: the key must be there, with
// one of the values if there are any; or not, if not is set.
type condition struct {
	key    string
	values []string
	not    bool
}

// Selector chooses sites by their labels. Its zero value chooses all.
type Selector struct{ all []condition }

// ParseSelector reads an expression on labels; see the package's comment.
func ParseSelector(s string) (Selector, error) {
	var out Selector
	for rest := s; ; {
		part, more, again := cutCondition(rest)
		c, err := parseCondition(strings.TrimSpace(part))
		if err != nil {
			return Selector{}, err
		}
		if out.all = append(out.all, c); len(out.all) > maxConditions {
			return Selector{}, fmt.Errorf("%d conditions at most", maxConditions)
		}
		if !again {
			return out, nil
		}
		rest = more
	}
}

// cutCondition cuts at the first comma that is not between parentheses.
func cutCondition(s string) (part, rest string, found bool) {
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth <= 0 {
				return s[:i], s[i+1:], true
			}
		}
	}
	return s, "", false
}

func parseCondition(s string) (condition, error) {
	var c condition
	var value string
	words := strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ", ",", " , ").Replace(s))
	switch key, not := strings.CutPrefix(s, "!"); {
	case not:
		c = condition{key: strings.TrimSpace(key), not: true}
	case strings.Contains(s, "!="):
		c.key, value, _ = strings.Cut(s, "!=")
		c.not, c.values = true, []string{strings.TrimSpace(value)}
	case strings.Contains(s, "="):
		c.key, value, _ = strings.Cut(s, "=")
		c.values = []string{strings.TrimSpace(strings.TrimPrefix(value, "="))}
	case len(words) >= 5 && (words[1] == "in" || words[1] == "notin") && words[2] == "(" && words[len(words)-1] == ")":
		c = condition{key: words[0], not: words[1] == "notin"}
		for i, w := range words[3 : len(words)-1] {
			if (i%2 == 1) != (w == ",") {
				return c, fmt.Errorf("%q: write the values as (a,b)", s)
			}
			if w != "," {
				c.values = append(c.values, w)
			}
		}
		if len(words)%2 == 1 { // it ends with a comma
			break
		}
		return c, fmt.Errorf("%q: write the values as (a,b)", s)
	default:
		c.key = s
	}
	c.key = strings.TrimSpace(c.key)
	for _, text := range append([]string{c.key}, c.values...) {
		if state.CheckLabel(text) != nil {
			return c, fmt.Errorf("%q is not a condition: write key, !key, key=value, key!=value, key in (a,b) or key notin (a,b)", s)
		}
	}
	return c, nil
}

// Matches reports whether a site with these labels is chosen.
func (s Selector) Matches(labels map[string]string) bool {
	return !slices.ContainsFunc(s.all, func(c condition) bool {
		value, has := labels[c.key]
		return (has && (len(c.values) == 0 || slices.Contains(c.values, value))) == c.not
	})
}

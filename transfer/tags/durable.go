package tags

import (
	"fmt"
	"strings"
	"time"
)

// NotDurable says that fewer sites have a push than its project wants.
type NotDurable struct {
	Project    string
	Want, Have int
	// Away are the sites that did not take it, each with the reason.
	Away []Wait
	// Visible: the manifest is in the catalogue, and will be at the other sites.
	Visible bool
	// NotSet are the tags of a visible one that were not set: those of a project with
	// strong tags, which waits for its sites first. Nobody sets them later.
	NotSet     []string
	RetryAfter time.Duration
}

func (e *NotDurable) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "project %s wants every push at %d sites: this one is stored at %d of %d", e.Project, e.Want, e.Have, e.Want)
	for i, w := range e.Away {
		sep := ", "
		if i == 0 {
			sep = "; "
		}
		fmt.Fprintf(&b, "%s%s: %s", sep, w.Site, w.Reason)
	}
	switch {
	case len(e.NotSet) == 1:
		fmt.Fprintf(&b, "; its manifest is stored and will be at the other sites, the tag %s was not set: push again", e.NotSet[0])
	case len(e.NotSet) > 1:
		fmt.Fprintf(&b, "; its manifest is stored and will be at the other sites, the tags %s were not set: push again", strings.Join(e.NotSet, ", "))
	case e.Visible:
		b.WriteString("; it will complete by itself, and pushing again is safe")
	default:
		b.WriteString("; nothing of it is visible, push again")
	}
	return b.String()
}

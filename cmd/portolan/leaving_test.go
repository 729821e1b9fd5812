package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/registryapi/mesh"
)

// leaving answers what only one site holds, as the script says.
type leaving struct {
	mu      sync.Mutex
	copies  map[string]int
	words   map[string]string
	removed bool
	// The first polls of a site that is pushed to find pushes under way: more than one
	// call makes.
	pushing, polls int
}

func (l *leaving) set(site string, words []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pushing, l.polls = 0, 10
	if l.copies == nil {
		l.copies, l.words = map[string]int{}, map[string]string{}
	}
	l.copies[site] = 0
	l.words[site] = strings.Join(words, " ")
	for _, w := range words {
		if n, ok := strings.CutPrefix(w, "copies="); ok {
			l.copies[site], _ = strconv.Atoi(n)
		}
	}
}

func (l *leaving) is(site, word string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.words[site], word)
}

func (l *leaving) isAway(site string) bool { return l.is(site, "away") }

func (l *leaving) remove() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
}

func (l *leaving) status() *mesh.Removed {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.removed {
		return nil
	}
	return &mesh.Removed{Site: "fra", By: "user:ann", Message: "this node was site fra and was removed from the mesh"}
}

// perPart is how many copies one part of the answer has.
const perPart = 2

func (l *leaving) answer(_ context.Context, q mesh.LastCopyQuestion) (mesh.LastCopies, error) {
	if l.is(q.Site, "silent") && !q.Lost {
		return mesh.LastCopies{}, &mesh.SilentSite{Site: q.Site, Err: errors.New("dial: refused")}
	}
	if l.is(q.Site, "unwilling") && !q.Lost {
		return mesh.LastCopies{}, &mesh.UnwillingSite{Err: errors.New("site " + q.Site + " is there and has not heard yet"), Later: true}
	}
	unseen, pushing := l.is(q.Site, "unseen"), l.is(q.Site, "pushing")
	l.mu.Lock()
	defer l.mu.Unlock()
	if pushing && l.pushing < l.polls {
		l.pushing++
		return mesh.LastCopies{}, &mesh.PushingSite{UnderWay: 3, Err: errors.New("3 pushes are under way")}
	}
	from, _ := strconv.Atoi(q.After)
	out := mesh.LastCopies{}
	for i := from; i < min(from+perPart, l.copies[q.Site]); i++ {
		d := digest.FromString(strconv.Itoa(i))
		c := mesh.LastCopy{Repository: fmt.Sprintf("prod/app%d", i), Digest: d, Content: []digest.Digest{d}, Bytes: 3 << (10 * i)}
		if i == 0 {
			c.Tags, c.Cached = []string{"1.0"}, []string{"nyc"}
		}
		if i == 1 {
			c.Silent = []string{"nyc"}
		}
		out.Copies = append(out.Copies, c)
		out.Manifests += 10
	}
	if from+perPart < l.copies[q.Site] {
		out.Next = strconv.Itoa(from + perPart)
	} else if unseen && from == 0 {
		out.Unseen = []mesh.Unseen{{Project: "secret", Sites: []string{"nyc"}}, {Project: "own"}}
	}
	if q.Lost && out.Next == "" {
		out.NeverLeft = &mesh.NeverLeft{}
		for _, w := range strings.Fields(l.words[q.Site]) {
			switch key, value, _ := strings.Cut(w, "="); key {
			case "unsent":
				out.NeverLeft.Requests, out.NeverLeft.Projects = 7, 2
			case "told":
				out.NeverLeft.Heard = strings.Split(value, ",")
			case "deaf":
				out.NeverLeft.Silent = strings.Split(value, ",")
			}
		}
	}
	return out, nil
}

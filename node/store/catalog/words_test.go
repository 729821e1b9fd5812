package catalog

import (
	"testing"

	"github.com/portolan/portolan/node/identity"
)

// TestNeverSeen_OfSeveralStores: the newest word that anybody heard counts, and what
// anybody has is not lost.
func TestNeverSeen_OfSeveralStores(t *testing.T) {
	first, second := identity.NewIncarnation(), identity.NewIncarnation()
	for name, c := range map[string]struct {
		words  []Word
		covers Vector
		want   uint64
	}{
		"nobody heard of any":              {want: 0},
		"one has all":                      {words: []Word{{first, 9, 5, 5}}, want: 0},
		"the newest word counts":           {words: []Word{{first, 9, 5, 5}, {first, 12, 8, 2}}, want: 3},
		"whoever is asked first":           {words: []Word{{first, 12, 8, 2}, {first, 9, 5, 5}}, want: 3},
		"once, not for each who heard it":  {words: []Word{{first, 9, 5, 3}, {first, 9, 5, 3}}, want: 2},
		"each incarnation":                 {words: []Word{{first, 9, 5, 3}, {second, 4, 4, 4}, {second, 5, 5, 0}}, want: 3},
		"the asking one has what was told": {words: []Word{{first, 9, 5, 3}}, covers: Vector{first: 9}, want: 0},
		"but not what came later":          {words: []Word{{first, 9, 5, 3}, {first, 12, 8, 0}}, covers: Vector{first: 9}, want: 3},
		"what was not kept apart is lost":  {words: []Word{{0, 0, 2, 0}, {0, 0, 7, 0}, {first, 1, 1, 1}}, want: 7},
	} {
		t.Run(name, func(t *testing.T) {
			if n := NeverSeen(c.words, c.covers); n != c.want {
				t.Errorf("%d requests are nowhere, want %d", n, c.want)
			}
		})
	}
}

// TestUnseen_WordsSayTheSame as the count.
func TestUnseen_WordsSayTheSame(t *testing.T) {
	var u Unseen
	for i := range uint64(2 * maxIncarnations) {
		inc := identity.NewIncarnation()
		u.Hear(Written{Dot: Dot{inc, i + 2}, Count: i + 2}, nil)
		u.Hear(Written{Dot: Dot{inc, i + 3}, Count: i + 3}, Vector{inc: i + 2})
	}
	if n, want := NeverSeen(u.Words(nil), nil), u.Count(nil); n != want || n == 0 {
		t.Errorf("%d requests by the words, %d by the count", n, want)
	}
	if words := u.Words(nil); len(words) != maxIncarnations+1 {
		t.Errorf("%d words", len(words))
	}
}

package catalog

import "github.com/portolan/portolan/node/identity"

// Word is what one store says about another one's requests in one project and one
// incarnation, by the other's word (Unseen).
type Word struct {
	// Inc zero: what could not be kept apart any more. Count of that is lost for sure.
	Inc identity.Incarnation
	// Seq is the number of the newest request that the other told of, Count how many
	// there were up to it.
	Seq, Count uint64
	// Seen is how many of them, from the first on, the store has.
	Seen uint64
}

// Words gives what was heard; covers is what is seen here of the project.
func (u *Unseen) Words(covers Vector) []Word {
	var out []Word
	if u.more > 0 {
		out = append(out, Word{Count: u.more})
	}
	for i := range u.words {
		x := &u.words[i]
		x.see(covers)
		out = append(out, Word{Inc: x.last.Dot.Inc, Seq: x.last.Dot.Seq, Count: x.last.Count, Seen: x.seen.Count})
	}
	return out
}

// NeverSeen adds up what several stores heard of one store's requests in one project:
// how many of those that any of them was told of none of them has, at most: what one has
// in part counts as missing. What it told nobody is not in it, so it may have made more.
// Covers is what the asking store has of it. Of each incarnation the newest word counts
// that any of them heard, whoever it was, and what any of them has is not lost.
func NeverSeen(words []Word, covers Vector) (requests uint64) {
	told, seen := map[identity.Incarnation]uint64{}, map[identity.Incarnation]uint64{}
	for _, w := range words {
		told[w.Inc] = max(told[w.Inc], w.Count)
		if w.Inc == 0 {
			continue
		}
		if covers.Covers(Dot{Inc: w.Inc, Seq: w.Seq}) {
			w.Seen = w.Count
		}
		seen[w.Inc] = max(seen[w.Inc], w.Seen)
	}
	for inc, n := range told {
		requests += n - min(n, seen[inc])
	}
	return requests
}

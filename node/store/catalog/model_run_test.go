package catalog

import (
	"flag"
	"strings"
	"testing"
	"time"
)

var histories = flag.Int("histories", 40, "random histories of TestModel, about 0.1 s each")

var modelSeed = flag.Uint64("seed", 0, "run TestModel's history of this seed alone")

func TestModel(t *testing.T) {
	if *modelSeed != 0 {
		for range 20 { // clients that write at once make each run another
			if err := newFleet(t, mistakes{}).run(t.Context(), *modelSeed, 60, mistakes{}); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	f := newFleet(t, mistakes{})
	base := uint64(time.Now().UnixNano())
	for i := range *histories {
		if err := f.run(t.Context(), base+uint64(i), 60, mistakes{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestModel_FindsPlantedMistakes shows that the model would not pass with a
// catalogue, or a carrier of pages, that is wrong.
func TestModel_FindsPlantedMistakes(t *testing.T) {
	for name, bad := range map[string]mistakes{
		"rule 2: merge ignores contexts": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			for _, e := range []*entry{here, in} {
				if e != nil {
					for _, s := range e.sibs {
						if !out.has(s.dot) {
							out.sibs = append(out.sibs, s)
						}
					}
				}
			}
			out.sort()
			return out
		}},
		"rule 5: merge takes in what was deleted here": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			for _, s := range in.sibs {
				if !out.has(s.dot) {
					out.sibs = append(out.sibs, s)
				}
			}
			out.sort()
			return out
		}},
		"rule 2: merge lets the last stamp win": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			if w := out.winner(); w != nil {
				out.sibs = []sibling{*w}
			}
			return out
		}},
		"rule 1: merge takes over the sender's context": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			out.ctx = in.ctx.Clone()
			for _, s := range out.sibs {
				out.ctx[s.dot.Inc] = max(out.ctx[s.dot.Inc], s.dot.Seq)
			}
			return out
		}},
		"rule 8: merge forgets losers": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			out.losers = nil
			return out
		}},
		"rule 4: vector adopted before the last page": {adoptEarly: true},
		"rule 4: vector noted after the pages":        {noteLate: true},
		"rule 1: numbers given again after a restart": {reuseSeq: true},

		"rule 6: no list for who may have missed what was purged":    {noList: true},
		"rule 6: a list drops what its sender has not seen":          {dropUnseen: true},
		"rule 6: a list counts although rows of its sender are lost": {unsoundList: true},
		"rule 6: a list counts before its last part":                 {dropBegun: true},
		"rule 6: tombstones purged before all of them was seen":      {purgeUnseen: true},
		"rule 6: what was purged is not taken over":                  {forgetPurged: true},
		"rule 7: lost rows found, and the vector kept":               {keepVector: true},
		"rule 11: a site leaves before another covers what it has":   {leaveEarly: true},
		"rule 11: a site leaves to one that has not everything":      {leaveToNew: true},
		"rule 11: a site is a member before it has what others have": {memberEarly: true},
		"rule 14: what never left a node is not counted":             {countLow: true},

		"invariant 20: what a switch imported beyond its importer's vector is late": {ordered: func(_ *strongView, sw Ordered) Ordered {
			sw.Taken = nil
			return sw
		}},
		"invariant 20: it is ordered of all tags of the same request": {ordered: func(v *strongView, sw Ordered) Ordered {
			all := Vector{}
			for _, taken := range v.taken {
				for inc, seq := range taken {
					all[inc] = max(all[inc], seq)
				}
			}
			sw.Taken = func(string, string) Vector { return all }
			return sw
		}},
		"invariant 20: nothing is known to be ordered":                    {ordered: func(_ *strongView, sw Ordered) Ordered { return Ordered{Before: sw.Before} }},
		"invariant 20: a site writes over words that it has not heard of": {blind: true},
		"invariant 20: nobody is late":                                    {ordered: func(_ *strongView, sw Ordered) Ordered { return Ordered{Seen: sw.Seen, Taken: sw.Taken} }},
		"invariant 20: what is written after the mode is late": {ordered: func(_ *strongView, sw Ordered) Ordered {
			if sw.Before != 0 {
				sw.Before = ^uint64(0)
			}
			return sw
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, bad)
			start := time.Now()
			const most = 300
			for i := range uint64(most) {
				if err := f.run(t.Context(), i, 60, bad); err != nil {
					if rule, _, _ := strings.Cut(name, ":"); bad.strong() && !strings.Contains(err.Error(), rule+":") {
						t.Errorf("found, and not by %s: %v", rule, err)
					}
					t.Logf("found in history %d after %v: %s", i, time.Since(start).Round(time.Millisecond), firstLine(err))
					return
				}
			}
			t.Errorf("not found in %d histories", most)
		})
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return strings.ToValidUTF8(line, "?")
}

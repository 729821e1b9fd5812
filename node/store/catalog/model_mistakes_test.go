package catalog

import (
	"context"
	"slices"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// plantedMistakes are those that TestModel must find, by the rule of the catalogue
// (or the invariant of DESIGN.md) that each breaks.
func plantedMistakes() map[string]mistakes {
	return map[string]mistakes{
		"rule 2: merge keeps what the other side has seen the end of": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			if here != nil {
				for _, s := range here.sibs {
					if !out.has(s.dot) {
						out.sibs = append(out.sibs, s)
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
		"rule 2: merge takes over the sender's context": {merge: func(here, in *entry, purged Vector) *entry {
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
		"rule 1: a write leaves what it replaced":     {ruleMistakes: ruleMistakes{leaveOld: true}},
		"rule 1: a write forgets the context":         {ruleMistakes: ruleMistakes{forgetContext: true}},

		"rule 6: no list for who may have missed what was purged":              {noList: true},
		"rule 6: a list drops what its sender has not seen":                    {dropUnseen: true},
		"rule 6: a list counts although rows of its sender are lost":           {unsoundList: true},
		"rule 6: a list counts before its last part":                           {dropBegun: true},
		"rule 6: tombstones purged before all of them was seen":                {purgeUnseen: true},
		"rule 6: what was purged is not taken over":                            {forgetPurged: true},
		"rule 7: lost rows found, and the vector kept":                         {keepVector: true},
		"rule 7: a vector dropped, and nobody asks for what it had seen alone": {dropSilently: true},
		"rule 11: a site leaves before another covers what it has":             {leaveEarly: true},
		"rule 11: a site leaves to one that has not everything":                {leaveToNew: true},
		"rule 11: a site is a member before it has what others have":           {memberEarly: true},
		"rule 14: what never left a node is not counted":                       {countLow: true},

		"rule 3: what comes last wins": {merge: func(here, in *entry, purged Vector) *entry {
			out := merge(here, in, purged)
			for i := range out.sibs {
				if s := &out.sibs[i]; here != nil && !here.has(s.dot) {
					s.stamp = max(s.stamp, here.nextStamp(time.Time{}))
				}
			}
			return out
		}},
		"rule 3: readers see the write that came first":               {ruleMistakes: ruleMistakes{readOldest: true}},
		"rule 9: a manifest and its tags are two requests":            {ruleMistakes: ruleMistakes{twoRequests: true}},
		"rule 9: an index does not add its children again":            {ruleMistakes: ruleMistakes{childless: true}},
		"rule 9: a page leaves out entries of a request":              {ruleMistakes: ruleMistakes{tear: true}},
		"rule 10: pages leave out manifests' bytes":                   {ruleMistakes: ruleMistakes{noBytes: true}},
		"rule 12: entries of an unknown project are taken in":         {ruleMistakes: ruleMistakes{takeUnknown: true}},
		"rule 12: content goes with the deletion":                     {ruleMistakes: ruleMistakes{dropDeleted: true}},
		"rule 12: entries are given to who has let go of the project": {ruleMistakes: ruleMistakes{giveToPurged: true}},
		"rule 13: what a wrong clock wrote is sent as it is":          {ruleMistakes: ruleMistakes{wrongStamps: true}},
		"rule 15: who names content of another project may have it":   {ruleMistakes: ruleMistakes{believe: true}},

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
	}
}

// ruleMistakes are planted to see that these checks find them.
type ruleMistakes struct {
	leaveOld      bool // rule 1: a write leaves what it replaced
	forgetContext bool // rule 1: a write forgets the context

	readOldest   bool // rule 3: readers see the write that came first
	twoRequests  bool // rule 9: a manifest and its tags are two requests
	childless    bool // rule 9: an index does not add its children again
	tear         bool // rule 9: a page leaves out entries of a request
	noBytes      bool // rule 10: pages leave out manifests' bytes
	wrongStamps  bool // rule 13: what a wrong clock wrote is sent as it is
	believe      bool // rule 15: who names content of another project may have it
	takeUnknown  bool // rule 12: entries of a project that the node has not heard of are taken in
	dropDeleted  bool // rule 12: content goes with the deletion
	giveToPurged bool // rule 12: entries are given to who has let go of the project
}

// do is request.do with a client, or a catalogue, that makes the mistakes of rule 9.
func (b ruleMistakes) do(ctx context.Context, r *request, c *Catalog, pid identity.ProjectID) {
	if b.leaveOld || b.forgetContext {
		b.spoilWrite(ctx, r, c, pid)
		return
	}
	if r.put == nil || !b.twoRequests && !b.childless {
		r.do(ctx, c, pid)
		return
	}
	p := *r.put
	if b.childless {
		p.Refs = slices.DeleteFunc(slices.Clone(p.Refs), func(ref Ref) bool { return ref.Kind == RefManifest })
	}
	if b.twoRequests && len(p.Tags) > 0 {
		alone := p
		alone.Tags = nil
		if _, r.err = c.PutManifest(ctx, alone); r.err != nil {
			return
		}
	}
	r.dot, r.err = c.PutManifest(ctx, p)
}

// spoilWrite writes, and then changes what the write made of its tags.
func (b ruleMistakes) spoilWrite(ctx context.Context, r *request, c *Catalog, pid identity.ProjectID) {
	tags := []string{r.tag}
	if r.put != nil {
		tags = r.put.Tags
	}
	before := map[string]*entry{}
	for _, tag := range tags {
		if r.err = c.view(func(read reader) (err error) {
			before[tag], err = read.entry(pid, entryKey{kindTag, r.repo, tag})
			return err
		}); r.err != nil {
			return
		}
	}
	if r.do(ctx, c, pid); r.err != nil {
		return
	}
	for _, tag := range tags {
		k := entryKey{kindTag, r.repo, tag}
		if r.err = c.submitAs(ctx, jobReceived, func(w *batch) error {
			e, err := w.entry(pid, k)
			if err != nil || e == nil || before[tag] == nil {
				return err
			}
			wrong := *e
			if b.leaveOld {
				wrong.sibs = append(slices.Clone(e.sibs), before[tag].sibs...)
			}
			if b.forgetContext {
				wrong.ctx = Vector{r.dot.Inc: r.dot.Seq}
			}
			wrong.sort()
			return w.save(pid, k, e, &wrong)
		}); r.err != nil {
			return
		}
	}
}

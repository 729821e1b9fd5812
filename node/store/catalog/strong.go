package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// strongInc is the incarnation of what the control state decided: no store ever
// gives it, and its numbers are the state's. Two stores that write the same row
// of the state write the same sibling (invariant 20).
const strongInc identity.Incarnation = 0

// StrongTag is what the control state says of a tag.
type StrongTag struct {
	Repo, Name string
	Digest     digest.Digest // empty: the tag is gone
	Seq        uint64
	Stamp      uint64
	Actor      string
	ACLIndex   uint64
}

// Ordered says what a switch to strong tags ordered before its end: what it did
// not is late, whoever wrote it.
type Ordered struct {
	// Before is the raft index of the switch's end, or, for who sees the mode go on, the
	// next one after what he has seen: what was written under rights of an earlier one is
	// either ordered or late, and what was under later ones comes after the mode. 0: there
	// was no switch, and all that is not the control state's own word came before it.
	Before uint64
	// Seen is what the store had from which the tags were imported.
	Seen Vector
	// Taken gives what of one tag was imported besides (TagState.From); nil: nothing was.
	Taken func(repo, tag string) Vector
	// Ahead is told of rights, from Before on, under which was written what words leave
	// alone; also of what is told already. Nil: nobody wants to know.
	Ahead func(aclIndex uint64)
}

// of is what the switch ordered of one tag.
func (o Ordered) of(k entryKey) ordering {
	out := ordering{before: o.Before, seen: o.Seen, ahead: o.Ahead}
	if o.Taken != nil {
		out.taken = o.Taken(k.repo, k.name)
	}
	return out
}

// ordering is Ordered for one tag. Of a sibling that a site wrote one of covers, late
// and after holds; without a switch none, and words replace it.
type ordering struct {
	before      uint64
	seen, taken Vector
	ahead       func(uint64)
}

// covers reports whether a sibling was there when the tags were imported, so that
// the control state's words come after it.
func (o ordering) covers(s *sibling) bool {
	return s.dot.Inc != strongInc && (o.seen.Covers(s.dot) || o.taken.Covers(s.dot))
}

// late reports whether a sibling was written by who did not know of the switch, and
// was not there.
func (o ordering) late(s *sibling) bool {
	return s.dot.Inc != strongInc && s.aclIndex < o.before && !o.covers(s)
}

// after reports whether a sibling was written by who knew of the switch. Sites write
// tags only once the mode is over: whoever puts words down still has not heard of that.
func (o ordering) after(s *sibling) bool {
	return o.before != 0 && s.dot.Inc != strongInc && s.aclIndex >= o.before && !o.covers(s)
}

// strongChunk bounds the tags that one transaction writes.
const strongChunk = 250

// PutStrong writes what the control state says of tags, over what is here of
// them. It is idempotent, and leaves alone what is as new already. Siblings that
// sites wrote, and that the switch to strong tags neither ordered nor waited for, are kept as losers of a conflict;
// those that it ordered were overwritten, as by any write. Once
// all of it is durable, the project's vector says that this store has seen
// everything up to upTo (0: it does not change). from is what the vector said when
// the tags were chosen: if it says less by now, rows may be lost that are not among
// them, and it is ErrVectorDropped. It gives the manifests that tags
// say now and did not before.
func (c *Catalog) PutStrong(ctx context.Context, pid identity.ProjectID, tags []StrongTag, sw Ordered, from, upTo uint64) ([]ManifestRef, error) {
	var out []ManifestRef
	for done := false; !done; {
		n := min(strongChunk, len(tags))
		part := tags[:n]
		tags, done = tags[n:], n == len(tags)
		var refs []ManifestRef
		err := c.submitAs(ctx, jobReceived, func(b *batch) error {
			refs = nil
			for _, t := range part {
				ref, err := b.putStrong(pid, t, sw)
				if err != nil {
					return err
				}
				if ref != nil {
					refs = append(refs, *ref)
				}
			}
			if !done || upTo == 0 {
				return nil
			}
			seen, err := b.vectorOf(tabVector, pid, strongInc)
			if err == nil && seen < from {
				return ErrVectorDropped
			}
			if err == nil && seen < upTo {
				b.setVector(tabVector, pid, Dot{strongInc, upTo})
				b.touch(pid, change{})
			}
			return err
		})
		if err != nil {
			return out, fmt.Errorf("catalog: write strong tags of project %s: %w", pid, err)
		}
		out = append(out, refs...)
	}
	return out, nil
}

func (b *batch) putStrong(pid identity.ProjectID, t StrongTag, sw Ordered) (*ManifestRef, error) {
	if err := errors.Join(checkName("repository", t.Repo), checkName("tag", t.Name)); err != nil {
		return nil, err
	}
	k := entryKey{kindTag, t.Repo, t.Name}
	old, err := b.entry(pid, k)
	if err != nil {
		return nil, err
	}
	if old == nil && t.Digest == "" {
		if purged, err := b.vectorOf(tabPurged, pid, strongInc); err != nil || purged >= t.Seq {
			return nil, err // its tombstone went already
		}
	}
	new, err := old.strong(t, sw.of(k), b.c.now(), func() Dot { return b.dot(pid) })
	if err != nil || new == nil {
		return nil, err
	}
	if err := b.save(pid, k, old, new); err != nil {
		return nil, err
	}
	if raw := new.says(); raw != nil && !bytes.Equal(raw, old.says()) {
		return &ManifestRef{t.Repo, digestOrEmpty(raw)}, nil
	}
	return nil, nil
}

// strong gives the entry after the control state's word; nil: it is as it should
// be, or newer.
func (e *entry) strong(t StrongTag, sw ordering, now time.Time, dot func() Dot) (*entry, error) {
	if e == nil {
		e = &entry{}
	}
	over := func(s *sibling) bool { return sw.late(s) || sw.covers(s) }
	var lost []loser
	for i := range e.sibs {
		s := &e.sibs[i]
		if sw.ahead != nil && sw.after(s) {
			sw.ahead(s.aclIndex)
		}
		if sw.late(s) {
			lost = append(lost, loser{dot: s.dot, digest: string(tagDigest(s)), keepUntilMs: now.Add(LoserKeptFor).UnixMilli()})
		}
	}
	seen := e.ctx[strongInc]
	stamp := e.nextStamp(now)
	var new *entry
	var says []byte
	switch {
	case seen >= t.Seq && !slices.ContainsFunc(e.sibs, func(s sibling) bool { return over(&s) }):
		return nil, nil
	case seen >= t.Seq:
		new = e.next(Dot{strongInc, seen}, stamp, nil, over)
		says = new.says()
	default:
		var s *sibling
		if t.Digest != "" {
			var err error
			if says, err = rawDigest(t.Digest); err != nil {
				return nil, err
			}
			value, err := deterministic.Marshal(&rowpb.TagValue{Digest: says})
			if err != nil {
				return nil, err
			}
			s = &sibling{dot: Dot{strongInc, t.Seq}, stamp: t.Stamp, value: value, actor: t.Actor, aclIndex: t.ACLIndex}
		}
		new = e.next(Dot{strongInc, t.Seq}, stamp, s, func(s *sibling) bool { return !sw.after(s) })
		e.before(sw).keepLosers(new, stamp)
	}
	for _, l := range lost {
		if l.digest != string(says) {
			new.losers = addLoser(new.losers, l)
		}
	}
	if len(lost) > 0 {
		// A request of this store's own, so that it reaches stores that do not judge: those
		// that know of the next mode already. Also if it said the same, and lost nothing.
		d := dot()
		new.ctx[d.Inc] = d.Seq
	}
	new.sort()
	return new, nil
}

// before gives the entry as it was without what came beside the control state's
// words: late siblings are losers for another reason, those after the mode are none, and
// ordered ones that a word is beside were overwritten by it, and have only not been told
// so here.
func (e *entry) before(sw ordering) *entry {
	spoken := slices.ContainsFunc(e.sibs, func(s sibling) bool { return s.dot.Inc == strongInc })
	return &entry{ctx: e.ctx, sibs: slices.DeleteFunc(slices.Clone(e.sibs), func(s sibling) bool {
		return sw.late(&s) || sw.after(&s) || spoken && sw.covers(&s)
	})}
}

// overruled reports whether sites said something of a tag of which the control
// state spoke, before it or after it.
func (e *entry) overruled() bool {
	return e.ctx[strongInc] > 0 && slices.ContainsFunc(e.sibs, func(s sibling) bool { return s.dot.Inc != strongInc })
}

// said gives the raft index of the newest of the control state's words that the entry
// includes: a seq is an epoch (consensus/state's epochShift) and an index, and these grow
// from one epoch to the next, too.
func (e *entry) said() uint64 { return e.ctx[strongInc] & (1<<48 - 1) }

// beside reports whether what sites wrote may not have been written over the control
// state's word: that is there still, or rights of before it say so. What a deleted word
// overwrote stands alone at a store that heard of it after the word.
func (e *entry) beside() bool {
	w := e.winner()
	if w == nil || !e.overruled() {
		return false
	}
	said := e.said()
	return w.dot.Inc == strongInc || slices.ContainsFunc(e.sibs, func(s sibling) bool { return s.aclIndex < said })
}

// NoteOverruled notes as lost what sites wrote beside the control state's words and
// what a switch to strong tags did not order, and ends what it did order, which the
// words overwrote elsewhere, also those that are gone by now: for a project whose tags
// are the sites' own again, where no later word will cover it.
func (c *Catalog) NoteOverruled(ctx context.Context, pid identity.ProjectID, sw Ordered) error {
	prefix := append(prefixPID(tabLive, pid), byte(kindTag))
	var found []entryKey
	err := c.walk(prefix, false, func(r reader, key, _ []byte) (func() error, error) {
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return nil, damaged(key)
		}
		e, err := r.entry(pid, k)
		if err != nil {
			return nil, err
		}
		over := e.beside()
		return func() error {
			if over {
				found = append(found, k)
			}
			return ctx.Err()
		}, nil
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(found, strongChunk) {
		err := c.submitAs(ctx, jobFreeing, func(b *batch) error { return b.noteOverruled(pid, part, sw) })
		if err != nil {
			return fmt.Errorf("catalog: conflicts of project %s: %w", pid, err)
		}
	}
	return nil
}

// noteOverruled is NoteOverruled for some tags.
func (b *batch) noteOverruled(pid identity.ProjectID, keys []entryKey, sw Ordered) error {
	b.judged = &sw
	for _, k := range keys {
		e, err := b.entry(pid, k)
		if err != nil {
			return err
		}
		w := e.winner()
		if w == nil {
			continue // gone since it was found
		}
		one, word := sw.of(k), w.dot.Inc == strongInc
		switch ended := slices.ContainsFunc(e.sibs, func(s sibling) bool { return one.covers(&s) }); {
		case ended && (word || sw.Before != 0 && e.said() >= sw.Before):
			// Stores that wrote the word over it have no dot to show for that.
			err = b.save(pid, k, e, e.next(b.dot(pid), e.nextStamp(b.c.now()), nil, one.covers))
		case word:
			err = b.noteConflicts(pid, k, e)
		default: // what lost to a site's write was noted when it came to that
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// StrongSeen is how far this store has the strong tags of a project.
func (c *Catalog) StrongSeen(pid identity.ProjectID) (seq uint64, err error) {
	err = c.view(func(r reader) error { seq, err = r.vectorOf(tabVector, pid, strongInc); return err })
	return seq, err
}

// vectorOf is one coordinate of a vector: a point read.
func (r reader) vectorOf(tab byte, pid identity.ProjectID, inc identity.Incarnation) (uint64, error) {
	key := keyVector(tab, pid, inc)
	b, err := r.get(key)
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, damaged(key)
	}
	return binary.BigEndian.Uint64(b), nil
}

// TagState is a tag that says something, for those who compare all of them.
type TagState struct {
	Repo string
	TagInfo
	ACLIndex uint64
	// From is what the tag's word here comes after, of this tag alone: the writes of it
	// that whoever imports the word had.
	From Vector
}

// EachTag calls fn for every tag of a project that says something. It holds no
// snapshot meanwhile. With seen a tag says what it did without concurrent writes
// that came later, unless nothing else is left of it.
func (c *Catalog) EachTag(pid identity.ProjectID, seen Vector, fn func(TagState) error) error {
	prefix := append(prefixPID(tabLive, pid), byte(kindTag))
	return c.walk(prefix, false, func(r reader, key, _ []byte) (func() error, error) {
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return nil, damaged(key)
		}
		e, err := r.entry(pid, k)
		if err != nil {
			return nil, err
		}
		e = e.within(seen)
		w := e.winner()
		if w == nil {
			return nil, damaged(key)
		}
		from := maps.Clone(e.ctx)
		delete(from, strongInc)
		t := TagState{Repo: k.repo, ACLIndex: w.aclIndex, From: from,
			TagInfo: TagInfo{Name: k.name, Digest: digestOrEmpty(tagDigest(w)), Stamp: w.stamp, Dot: w.dot, Actor: w.actor, At: stampTime(w.stamp)}}
		return func() error { return fn(t) }, nil
	})
}

// without gives the entry without some siblings.
func (e *entry) without(gone func(*sibling) bool) *entry {
	return &entry{ctx: e.ctx, losers: e.losers, sibs: slices.DeleteFunc(slices.Clone(e.sibs), func(s sibling) bool { return gone(&s) })}
}

// within gives the entry without what a vector does not cover, if any sibling is
// left. Else all of it: a tag that was new, or was written over what the vector covers,
// which is nowhere any more and would be gone with it. The control state's word, which
// the vector says nothing of, does not speak for what came beside it.
func (e *entry) within(seen Vector) *entry {
	if seen == nil || e == nil {
		return e
	}
	out := e.without(func(s *sibling) bool { return s.dot.Inc != strongInc && !seen.Covers(s.dot) })
	if len(out.sibs) == 0 {
		return e
	}
	out.ctx = make(Vector, len(e.ctx))
	for inc, seq := range e.ctx {
		if seq = min(seq, seen[inc]); seq > 0 {
			out.ctx[inc] = seq
		}
	}
	return out
}

// OnlyOver has writes of tags go only over words of the control state that the one
// here has heard of: spoken gives the seq of the newest in a project. Entries may be
// ahead of the state: what does not know of a word is late, whatever it was written over,
// and with it the word would be gone. Such a write gets ErrUnheard. ordered says what the
// last switch to strong tags ordered: of that nothing is lost when a site writes over it
// and over the word that came after it. Both are called by the committer, and must not
// block.
func (c *Catalog) OnlyOver(spoken func(identity.ProjectID) uint64, ordered func(identity.ProjectID) Ordered) {
	c.words.Store(&words{spoken, ordered})
}

// words is what the control state says of tags, see OnlyOver.
type words struct {
	spoken  func(identity.ProjectID) uint64
	ordered func(identity.ProjectID) Ordered
}

// heardOf is OnlyOver for the entry of one tag, before a site writes over it.
func (b *batch) heardOf(pid identity.ProjectID, k entryKey, e *entry) error {
	w := b.c.words.Load()
	if w == nil || k.kind != kindTag || e == nil || e.ctx[strongInc] == 0 || e.ctx[strongInc] <= w.spoken(pid) {
		return nil
	}
	return fmt.Errorf("%w: %s of %s", ErrUnheard, k.name, k.repo)
}

// unordered gives a tag's entry without what a word beside it came after, before a site
// writes over both: those that wrote the word over it have no dot to show for that.
func (b *batch) unordered(pid identity.ProjectID, k entryKey, e *entry) *entry {
	w := b.c.words.Load()
	if w == nil || len(e.sibs) < 2 || !slices.ContainsFunc(e.sibs, func(s sibling) bool { return s.dot.Inc == strongInc }) {
		return e
	}
	return e.without(w.ordered(pid).of(k).covers)
}

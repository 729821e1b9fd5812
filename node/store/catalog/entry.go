package catalog

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file is the replicated register: pure functions over values. Nothing in
// it reads a clock, the database or the control state (invariant 2).

// flagImmutable marks a tag sibling that must not be overwritten: among several
// the first wins (invariant 3).
const flagImmutable = 1

// stampShift leaves 65536 stamps within one millisecond.
const stampShift = 16

// sibling is one write that no other has overwritten yet.
type sibling struct {
	dot      Dot
	stamp    uint64
	value    []byte // TagValue or ManifestValue, as its writer encoded it
	flags    uint32
	actor    string
	aclIndex uint64

	// What value says, once it was read (entryFromPB): see tagDigest and manifestValue.
	// Nobody changes it.
	tag      []byte // raw digest
	manifest *rowpb.ManifestValue
}

// loser is a sibling that a later write ended as the loser of a conflict.
type loser struct {
	dot         Dot
	digest      string // raw
	keepUntilMs int64
}

// entry is the register of one key. An entry without siblings is a tombstone.
type entry struct {
	sibs   []sibling // by ascending dot
	ctx    Vector    // highest dot of this key per incarnation that the state includes
	losers []loser   // by ascending dot
	goneMs int64     // of a tombstone: since when it is one at this store; no part of the state
}

func compareDots(a, b Dot) int {
	return cmp.Or(cmp.Compare(a.Inc, b.Inc), cmp.Compare(a.Seq, b.Seq))
}

func (e *entry) live() bool { return e != nil && len(e.sibs) > 0 }

func (e *entry) has(d Dot) bool {
	return slices.ContainsFunc(e.sibs, func(s sibling) bool { return s.dot == d })
}

// winner is what readers see (invariant 3): the control state's word, else the
// highest (stamp, dot), or the lowest among immutable siblings. Nil for a
// tombstone.
func (e *entry) winner() *sibling {
	if e == nil {
		return nil
	}
	var best *sibling
	for i := range e.sibs {
		s := &e.sibs[i]
		switch {
		case best == nil:
			best = s
		case (s.dot.Inc == strongInc) != (best.dot.Inc == strongInc):
			if s.dot.Inc == strongInc {
				best = s
			}
		case s.flags&flagImmutable != best.flags&flagImmutable:
			if s.flags&flagImmutable != 0 {
				best = s
			}
		default:
			later := cmp.Or(cmp.Compare(s.stamp, best.stamp), compareDots(s.dot, best.dot)) > 0
			if later == (s.flags&flagImmutable == 0) {
				best = s
			}
		}
	}
	return best
}

// nextStamp is invariant 3's: it only breaks ties between concurrent writes.
func (e *entry) nextStamp(now time.Time) uint64 {
	stamp := uint64(max(now.UnixMilli(), 0)) << stampShift
	if e != nil {
		for _, s := range e.sibs {
			stamp = max(stamp, s.stamp+1)
		}
	}
	return stamp
}

// next is the state after the request d replaced all siblings for which gone
// says so by the new one, or by nothing (invariant 1). Losers of a conflict that
// this ends are kept; those whose time has passed go.
func (e *entry) next(d Dot, stamp uint64, new *sibling, gone func(*sibling) bool) *entry {
	out := &entry{ctx: Vector{}}
	nowMs := int64(stamp >> stampShift)
	if e != nil {
		for inc, seq := range e.ctx {
			out.ctx[inc] = seq
		}
		for _, l := range e.losers {
			if l.keepUntilMs >= nowMs {
				out.losers = append(out.losers, l)
			}
		}
		for i := range e.sibs {
			if !gone(&e.sibs[i]) {
				out.sibs = append(out.sibs, e.sibs[i])
			}
		}
	}
	out.ctx[d.Inc] = d.Seq
	if new != nil {
		out.sibs = append(out.sibs, *new)
	}
	out.sort()
	return out
}

// all is the usual set of siblings that a write replaces: every one it has seen.
func all(*sibling) bool { return true }

// keepLosers adds to next the losers of e's conflict, because the write that
// made next ended it (invariant 8).
func (e *entry) keepLosers(next *entry, stamp uint64) {
	until := time.UnixMilli(int64(stamp >> stampShift)).Add(LoserKeptFor).UnixMilli()
	for _, s := range e.losing() {
		next.losers = addLoser(next.losers, loser{dot: s.dot, digest: string(tagDigest(s)), keepUntilMs: until})
	}
	next.sort()
}

// losing gives the siblings of a tag whose digest is not the winner's.
func (e *entry) losing() []*sibling {
	w := e.winner()
	if w == nil || len(e.sibs) == 1 {
		return nil
	}
	var out []*sibling
	for i := range e.sibs {
		if s := &e.sibs[i]; !bytes.Equal(tagDigest(s), tagDigest(w)) {
			out = append(out, s)
		}
	}
	return out
}

func addLoser(to []loser, l loser) []loser {
	for i := range to {
		if to[i].dot == l.dot {
			to[i].keepUntilMs = max(to[i].keepUntilMs, l.keepUntilMs)
			return to
		}
	}
	return append(to, l)
}

func (e *entry) sort() {
	slices.SortFunc(e.sibs, func(a, b sibling) int { return compareDots(a.dot, b.dot) })
	slices.SortFunc(e.losers, func(a, b loser) int { return compareDots(a.dot, b.dot) })
}

// merge joins what came in with what is here (either may be nil). A sibling
// stays if both have it or the side that lacks it has not seen it (invariants 2
// and 5). purged stands here for the contexts of dropped tombstones.
func merge(here, in *entry, purged Vector) *entry {
	if here == nil {
		here = &entry{}
	}
	if in == nil {
		in = &entry{}
	}
	out := &entry{ctx: make(Vector, len(here.ctx)+1)}
	for inc, seq := range here.ctx {
		out.ctx[inc] = seq
	}
	for inc, seq := range in.ctx {
		out.ctx[inc] = max(out.ctx[inc], seq)
	}
	for _, s := range here.sibs {
		if in.has(s.dot) || !in.ctx.Covers(s.dot) {
			out.sibs = append(out.sibs, s)
		}
	}
	for _, s := range in.sibs {
		if !here.has(s.dot) && !here.ctx.Covers(s.dot) && !purged.Covers(s.dot) {
			out.sibs = append(out.sibs, s)
		}
	}
	out.losers = slices.Clone(here.losers)
	for _, l := range in.losers {
		out.losers = addLoser(out.losers, l)
	}
	out.sort()
	return out
}

// buried reports whether an entry that came in for a key of which nothing is here
// is a tombstone that was purged.
func (e *entry) buried(purged Vector) bool {
	return !e.live() && len(e.losers) == 0 && purged.Dominates(e.ctx)
}

// equal compares states; nil is the state of a key never written.
func (e *entry) equal(o *entry) bool {
	if e == nil || o == nil {
		return e == o
	}
	return e.ctx.Equal(o.ctx) && slices.Equal(e.losers, o.losers) &&
		slices.EqualFunc(e.sibs, o.sibs, func(a, b sibling) bool { return a.dot == b.dot })
}

// hash is the entry's part of its project's check. Losers are left out: each
// site lets them go in its own time.
func (e *entry) hash(suffix []byte) [16]byte { return e.digest(suffix, true) }

// liveHash is its part of the sum that stores compare. Contexts are left out: a
// store that purged a tombstone may have made the key anew.
func (e *entry) liveHash(suffix []byte) [16]byte { return e.digest(suffix, false) }

func (e *entry) digest(suffix []byte, contexts bool) [16]byte {
	buf := make([]byte, 0, 1024) // of most entries
	num := func(n uint64) { buf = binary.BigEndian.AppendUint64(buf, n) }
	text := func(b []byte) { num(uint64(len(b))); buf = append(buf, b...) }
	text(suffix)
	if contexts {
		num(uint64(len(e.ctx)))
		for _, inc := range e.ctx.incs() {
			num(uint64(inc))
			num(e.ctx[inc])
		}
	}
	num(uint64(len(e.sibs)))
	for _, s := range e.sibs {
		num(uint64(s.dot.Inc))
		num(s.dot.Seq)
		num(s.stamp)
		text(s.value)
		num(uint64(s.flags))
		text([]byte(s.actor))
		num(s.aclIndex)
	}
	sum := sha256.Sum256(buf)
	return [16]byte(sum[:16])
}

// sums are the two checks of a project: over all that this store should have,
// and over what stores that have seen the same have in common.
type sums struct{ all, live Check }

// put puts an entry into the sums, take takes it out.
func (s *sums) put(e *entry, suffix []byte) {
	s.all.add(e.hash(suffix), 1)
	if e.live() {
		s.live.add(e.liveHash(suffix), 1)
	}
}

func (s *sums) take(e *entry, suffix []byte) {
	s.all.add(e.hash(suffix), -1)
	if e.live() {
		s.live.add(e.liveHash(suffix), -1)
	}
}

// add puts an entry into the check or, being an exclusive or, takes it out.
func (c *Check) add(hash [16]byte, n int) {
	c.Count += uint64(n)
	for i := range hash {
		c.Xor[i] ^= hash[i]
	}
}

// deterministic gives equal bytes for equal messages made by one program.
var deterministic = proto.MarshalOptions{Deterministic: true}

// tail is what the values of several siblings end with. A manifest that was
// pushed at many sites at once has as many siblings, which differ in their home
// and end with the same list of references: it is written once.
func (e *entry) tail() []byte {
	if len(e.sibs) < 2 {
		return nil
	}
	tail := e.sibs[0].value
	for _, s := range e.sibs[1:] {
		n := 0
		for n < min(len(tail), len(s.value)) && tail[len(tail)-1-n] == s.value[len(s.value)-1-n] {
			n++
		}
		tail = tail[len(tail)-n:]
	}
	return tail
}

func (e *entry) toPB() *rowpb.Entry {
	out := &rowpb.Entry{Tail: e.tail(), GoneUnixMs: e.goneMs}
	for _, s := range e.sibs {
		out.Siblings = append(out.Siblings, &rowpb.Sibling{
			Inc: uint64(s.dot.Inc), Seq: s.dot.Seq, Stamp: s.stamp, Value: s.value[:len(s.value)-len(out.Tail)], Flags: s.flags, Actor: s.actor, AclIndex: s.aclIndex,
		})
	}
	for _, inc := range e.ctx.incs() {
		out.Ctx = append(out.Ctx, &rowpb.Seen{Inc: uint64(inc), Seq: e.ctx[inc]})
	}
	for _, l := range e.losers {
		out.Losers = append(out.Losers, &rowpb.Loser{Inc: uint64(l.dot.Inc), Seq: l.dot.Seq, Digest: []byte(l.digest), KeepUntilUnixMs: l.keepUntilMs})
	}
	return out
}

// maxValues bounds what a page can make of a tail that is repeated for each
// sibling: a hundred sites with the largest manifest stay below it.
const maxValues = 128 << 20

// entryFromPB takes over pb, and checks what the rest of the package relies on.
func entryFromPB(k entryKey, pb *rowpb.Entry) (*entry, error) {
	if len(pb.Tail)*len(pb.Siblings) > maxValues {
		return nil, fmt.Errorf("%w: %d siblings of %q with values of %d bytes", ErrInvalid, len(pb.Siblings), k.repo, len(pb.Tail))
	}
	e := &entry{ctx: make(Vector, len(pb.Ctx)), goneMs: pb.GoneUnixMs}
	for _, c := range pb.Ctx {
		e.ctx[identity.Incarnation(c.Inc)] = c.Seq
	}
	for _, s := range pb.Siblings {
		d := Dot{identity.Incarnation(s.Inc), s.Seq}
		if d.Seq == 0 || !e.ctx.Covers(d) || e.has(d) {
			return nil, fmt.Errorf("%w: sibling %s of %q is outside its context", ErrInvalid, d, k.repo)
		}
		value := s.Value
		if len(pb.Tail) > 0 {
			value = slices.Concat(s.Value, pb.Tail)
		}
		sib := sibling{dot: d, stamp: s.Stamp, value: value, flags: s.Flags, actor: s.Actor, aclIndex: s.AclIndex}
		var err error
		switch k.kind {
		case kindTag:
			var v *rowpb.TagValue
			if v, err = decodeTag(value); err == nil {
				sib.tag = v.Digest
			}
		case kindManifest:
			sib.manifest, err = decodeManifest(value)
		}
		if err != nil {
			return nil, fmt.Errorf("sibling %s of %q: %w", d, k.repo, err)
		}
		e.sibs = append(e.sibs, sib)
	}
	for _, l := range pb.Losers {
		if !isDigest(l.Digest) {
			return nil, fmt.Errorf("%w: digest of a loser of %q", ErrInvalid, k.repo)
		}
		e.losers = append(e.losers, loser{dot: Dot{identity.Incarnation(l.Inc), l.Seq}, digest: string(l.Digest), keepUntilMs: l.KeepUntilUnixMs})
	}
	e.sort()
	return e, nil
}

func (e *entry) encode() ([]byte, error) {
	return deterministic.Marshal(e.toPB())
}

func decodeEntry(k entryKey, b []byte) (*entry, error) {
	pb := &rowpb.Entry{}
	if err := proto.Unmarshal(b, pb); err != nil {
		return nil, fmt.Errorf("%w: entry %q: %w", ErrInvalid, k.repo, err)
	}
	return entryFromPB(k, pb)
}

func decodeTag(value []byte) (*rowpb.TagValue, error) {
	v := &rowpb.TagValue{}
	if err := proto.Unmarshal(value, v); err != nil {
		return nil, fmt.Errorf("%w: tag value: %w", ErrInvalid, err)
	}
	if !isDigest(v.Digest) {
		return nil, fmt.Errorf("%w: tag value without a digest", ErrInvalid)
	}
	return v, nil
}

// tagDigest gives the raw digest of a tag's sibling; entryFromPB has checked it.
func tagDigest(s *sibling) []byte {
	if s.tag != nil {
		return s.tag
	}
	v, err := decodeTag(s.value)
	if err != nil {
		return nil
	}
	return v.Digest
}

// says gives the raw digest that a tag's readers see; nil: none.
func (e *entry) says() []byte {
	if w := e.winner(); w != nil {
		return tagDigest(w)
	}
	return nil
}

// manifestValue gives what a manifest's sibling says.
func (s *sibling) manifestValue() (*rowpb.ManifestValue, error) {
	if s.manifest != nil {
		return s.manifest, nil
	}
	return decodeManifest(s.value)
}

func decodeManifest(value []byte) (*rowpb.ManifestValue, error) {
	v := &rowpb.ManifestValue{}
	if err := proto.Unmarshal(value, v); err != nil {
		return nil, fmt.Errorf("%w: manifest value: %w", ErrInvalid, err)
	}
	if len(v.Subject) > 0 && !isDigest(v.Subject) {
		return nil, fmt.Errorf("%w: manifest value: subject", ErrInvalid)
	}
	if v.ArtifactType != "" {
		if err := checkName("artifact type", v.ArtifactType); err != nil {
			return nil, err
		}
	}
	for _, r := range v.Refs {
		if !isDigest(r.Digest) || r.Size < 0 {
			return nil, fmt.Errorf("%w: manifest value: reference", ErrInvalid)
		}
	}
	return v, nil
}

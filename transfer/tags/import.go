package tags

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// say gives what the end of a switch says of what was seen for all tags: what the
// importer has, and what the switch before ordered, whose words it has seen too (not
// if people went on without them). A command holds so many incarnations; of more it
// says those that most tags go by, and the import says the rest of each tag.
func (d *Door) say(p state.Project, seen catalog.Vector) (catalog.Vector, error) {
	said := maps.Clone(seen)
	if p.Tags.Seq != 0 {
		var before catalog.Vector
		if err := before.UnmarshalBinary(p.Tags.Seen); err != nil {
			return nil, err
		}
		for inc, seq := range before {
			said[inc] = max(said[inc], seq)
		}
	}
	delete(said, 0) // the control state's own words
	if len(said) <= state.MaxSeen {
		return said, nil
	}
	tags := map[identity.Incarnation]int{}
	err := d.cat.EachTag(p.PID, seen, func(t catalog.TagState) error {
		for inc := range t.From {
			tags[inc]++
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	incs := slices.SortedFunc(maps.Keys(said), func(a, b identity.Incarnation) int {
		return cmp.Or(cmp.Compare(tags[b], tags[a]), cmp.Compare(a, b))
	})
	for _, inc := range incs[state.MaxSeen:] {
		delete(said, inc)
	}
	return said, nil
}

// imported is what came of an import.
type imported struct {
	tags    int
	attempt uint64 // names it
}

// importTags brings all tags into the state, as they are in what was seen, in as
// many commands as it takes. What late sites send meanwhile is not among it, unless
// nothing else is left of a tag: then, as with incarnations for which the end of the
// switch has no room, the command says what the tag's word comes after (G5a).
func (d *Door) importTags(ctx context.Context, p state.Project, seen, said catalog.Vector) (done imported, err error) {
	done.attempt = rand.Uint64()
	part := &command.TagsMode{Id: p.ID, Step: command.TagsMode_STEP_IMPORT, Index: p.Tags.Index, NodeId: d.cfg.Self[:], First: true, Import: done.attempt}
	size := 0
	send := func() error {
		err := d.propose(ctx, part)
		done.tags += len(part.GetTags())
		part.Tags, part.First, size = nil, false, 0
		return err
	}
	err = d.cat.EachTag(p.PID, seen, func(t catalog.TagState) error {
		one := &command.ImportedTag{Repository: t.Repo, Name: t.Name, Digest: t.Digest.String(), Stamp: t.Stamp, Actor: t.Actor, AclIndex: t.ACLIndex}
		if one.Taken, err = taken(t, said).MarshalBinary(); err != nil {
			return err
		}
		part.Tags = append(part.Tags, one)
		if size += proto.Size(one) + 4; size < importBytes {
			return nil
		}
		return send()
	})
	if err == nil && (len(part.GetTags()) > 0 || part.GetFirst()) {
		err = send()
	}
	return done, err
}

// taken is what a tag's word comes after and what is said of all tags does not
// cover: for most tags nothing. Of very many incarnations, the one that said the word
// is the first that matters.
func taken(t catalog.TagState, said catalog.Vector) catalog.Vector {
	out := catalog.Vector{}
	for inc, seq := range t.From {
		if said[inc] < seq {
			out[inc] = seq
		}
	}
	for _, inc := range slices.Sorted(maps.Keys(out)) {
		if len(out) <= state.MaxTakenPairs {
			break
		}
		if inc != t.Dot.Inc {
			delete(out, inc)
		}
	}
	return out
}

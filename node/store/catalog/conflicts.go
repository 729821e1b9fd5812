package catalog

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// FoundConflict is a conflict that this store lost, and when it learned of it.
type FoundConflict struct {
	Conflict
	FoundAt time.Time
}

// Conflicts lists the writes of tags made by this store that are known to have lost
// (invariant 8), in a project or, for the zero ProjectID, in all: the n that were
// found last, the last one first. They are kept for twice LoserKeptFor, reported or
// not. It reads all of them.
func (c *Catalog) Conflicts(pid identity.ProjectID, n int) ([]FoundConflict, error) {
	prefix := []byte{tabConflict}
	if !pid.IsZero() {
		prefix = prefixPID(tabConflict, pid)
	}
	var out []FoundConflict
	last := func() {
		slices.SortStableFunc(out, func(a, b FoundConflict) int {
			return cmp.Or(b.FoundAt.Compare(a.FoundAt), cmp.Compare(b.Dot.Seq, a.Dot.Seq))
		})
		out = slices.Clip(out[:min(n, len(out))])
	}
	err := c.walk(prefix, true, func(_ reader, key, value []byte) (func() error, error) {
		found, _, err := readConflict(key, value)
		return func() error {
			if out = append(out, found); len(out) >= 2*n {
				last() // what is held is bounded, however many there are
			}
			return nil
		}, err
	})
	last()
	return out, err
}

func readConflict(key, value []byte) (found FoundConflict, reported bool, err error) {
	pb := &rowpb.Conflict{}
	pid, dot, repo, tag, ok := parseConflict(key)
	if err := proto.Unmarshal(value, pb); err != nil || !ok {
		return found, false, damaged(key)
	}
	return FoundConflict{
		Conflict: Conflict{PID: pid, Repo: repo, Tag: tag, Dot: dot, Actor: pb.Actor, Loser: digestOrEmpty(pb.Loser), Winner: digestOrEmpty(pb.Winner)},
		FoundAt:  time.UnixMilli(pb.FoundUnixMs),
	}, pb.Reported, nil
}

package catalog

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

func tagSibling(t *testing.T, inc, seq, stamp uint64, flags uint32, says string) sibling {
	t.Helper()
	raw, err := rawDigest(digest.FromString(says))
	if err != nil {
		t.Fatal(err)
	}
	v, err := deterministic.Marshal(&rowpb.TagValue{Digest: raw})
	if err != nil {
		t.Fatal(err)
	}
	return sibling{dot: Dot{identity.Incarnation(inc), seq}, stamp: stamp, flags: flags, value: v}
}

func TestEntry_Winner(t *testing.T) {
	for name, tc := range map[string]struct {
		sibs []sibling
		want Dot
	}{
		"the highest stamp":                         {[]sibling{tagSibling(t, 1, 1, 5, 0, "a"), tagSibling(t, 2, 1, 9, 0, "b")}, Dot{2, 1}},
		"among equal stamps the highest dot":        {[]sibling{tagSibling(t, 1, 1, 5, 0, "a"), tagSibling(t, 2, 1, 5, 0, "b")}, Dot{2, 1}},
		"the first of the immutable":                {[]sibling{tagSibling(t, 1, 1, 5, 1, "a"), tagSibling(t, 2, 1, 9, 1, "b")}, Dot{1, 1}},
		"an immutable one before a later other one": {[]sibling{tagSibling(t, 1, 1, 5, 1, "a"), tagSibling(t, 2, 1, 9, 0, "b")}, Dot{1, 1}},
		"an immutable one that comes second":        {[]sibling{tagSibling(t, 1, 1, 5, 0, "a"), tagSibling(t, 2, 1, 9, 1, "b")}, Dot{2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			e := &entry{sibs: tc.sibs}
			if w := e.winner(); w.dot != tc.want {
				t.Errorf("winner %s, want %s", w.dot, tc.want)
			}
		})
	}
	if (*entry)(nil).winner() != nil || (&entry{}).winner() != nil {
		t.Error("a tombstone has a winner")
	}
}

func TestMerge_Laws(t *testing.T) {
	a1, a2, b1 := tagSibling(t, 1, 1, 5, 0, "a"), tagSibling(t, 1, 2, 6, 0, "b"), tagSibling(t, 2, 1, 7, 0, "c")
	states := []*entry{
		nil,
		{sibs: []sibling{a1}, ctx: Vector{1: 1}},
		{sibs: []sibling{a2}, ctx: Vector{1: 2}},
		{sibs: []sibling{b1}, ctx: Vector{2: 1}},
		{sibs: []sibling{a2, b1}, ctx: Vector{1: 2, 2: 1}},
		{ctx: Vector{1: 1, 3: 1}},
		{ctx: Vector{1: 2, 2: 1, 3: 2}, losers: []loser{{dot: Dot{2, 1}, digest: "x", keepUntilMs: 4}}},
	}
	for i, x := range states {
		for j, y := range states {
			xy := merge(x, y, nil)
			if !xy.equal(merge(y, x, nil)) {
				t.Errorf("merge of %d and %d depends on the order", i, j)
			}
			if !merge(xy, y, nil).equal(xy) || !merge(xy, x, nil).equal(xy) {
				t.Errorf("merge of %d and %d is not idempotent", i, j)
			}
			for l, z := range states {
				if !merge(xy, z, nil).equal(merge(x, merge(y, z, nil), nil)) {
					t.Errorf("merge of %d, %d and %d depends on the grouping", i, j, l)
				}
			}
		}
	}
}

func TestMerge_PurgedTombstoneStaysDeleted(t *testing.T) {
	in := &entry{sibs: []sibling{tagSibling(t, 1, 3, 5, 0, "a")}, ctx: Vector{1: 3}}
	if got := merge(nil, in, Vector{1: 3}); got.live() {
		t.Error("a sibling came back whose tombstone was dropped here")
	}
	if got := merge(nil, in, Vector{1: 2}); !got.live() {
		t.Error("a sibling was dropped that no tombstone had covered")
	}
}

func TestEntry_StampNeverFallsBehindWhatItReplaces(t *testing.T) {
	now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	ahead := uint64(now.Add(time.Hour).UnixMilli()) << stampShift
	e := &entry{sibs: []sibling{tagSibling(t, 1, 1, ahead, 0, "a")}}
	if got := e.nextStamp(now); got != ahead+1 {
		t.Errorf("stamp %d, want %d", got, ahead+1)
	}
	if got := (*entry)(nil).nextStamp(now); got != uint64(now.UnixMilli())<<stampShift {
		t.Errorf("stamp %d of a first write", got)
	}
}

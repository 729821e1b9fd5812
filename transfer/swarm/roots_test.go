package swarm

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

// record is a record as roots sees it: signatures were checked before.
func record(d digest.Digest, signer, root byte) units.Record {
	return units.Record{Digest: d, Root: [32]byte{root}, Signer: identity.NodeID{signer}}
}

func TestRoots_EachPairIsAnAlarmOnce(t *testing.T) {
	d, now := digest.FromString("blob"), time.Now()
	var r roots
	for i, c := range []struct {
		signer, root byte
		against      []byte // signers
	}{
		{signer: 1, root: 1},
		{signer: 2, root: 1}, // the same list
		{signer: 3, root: 2, against: []byte{1, 2}},
		{signer: 3, root: 2}, // seen again
		{signer: 1, root: 1},
		{signer: 1, root: 2, against: []byte{1, 2}}, // one signer, two lists
		{signer: 4, root: 3, against: []byte{1, 2, 3, 1}},
	} {
		against, lie := r.see(record(d, c.signer, c.root), now)
		var signers []byte
		for _, o := range against {
			signers = append(signers, o.Signer[0])
		}
		if !slices.Equal(signers, c.against) || lie {
			t.Errorf("record %d: against %v (lie: %v), want %v", i, signers, lie, c.against)
		}
	}
	if against, _ := r.see(record(digest.FromString("another"), 1, 9), now); against != nil {
		t.Error("records of two blobs contradict each other")
	}
	if len(r.disputes) != 8 || !r.disputed(d) || r.disputed(digest.FromString("another")) {
		t.Errorf("%d disputes", len(r.disputes))
	}
}

func TestRoots_TheListThatBroughtTheBlobIsTrue(t *testing.T) {
	d, now := digest.FromString("blob"), time.Now()
	var r roots
	for _, c := range [][2]byte{{1, 1}, {2, 2}, {3, 1}, {4, 3}} {
		r.see(record(d, c[0], c[1]), now)
	}
	lies := r.prove(record(d, 2, 2))
	if len(lies) != 3 || lies[0].Signer[0] != 1 || lies[1].Signer[0] != 3 || lies[2].Signer[0] != 4 {
		t.Errorf("lies %v", lies)
	}
	if again := r.prove(record(d, 2, 2)); again != nil {
		t.Errorf("named twice: %v", again)
	}
	if _, lie := r.see(record(d, 5, 2), now); lie {
		t.Error("the true list is a lie of a second signer")
	}
	if _, lie := r.see(record(d, 6, 1), now); !lie {
		t.Error("who signs a list that is known to be false does not lie")
	}
	for _, x := range r.disputes {
		for _, o := range x.Roots {
			if o.False != (o.Root[:2] != "02") {
				t.Errorf("dispute %+v", x)
			}
		}
	}
}

func TestRoots_EachListHasItsTurn(t *testing.T) {
	d, now := digest.FromString("blob"), time.Now()
	var r roots
	root := func(b byte) [32]byte { return [32]byte{b} }
	over := func(b byte) bool { return r.passOver(record(d, b, b), false, now) }
	r.see(record(d, 1, 1), now)
	if r.failed(d, root(1), now); over(1) {
		t.Error("the only list is passed over")
	}
	r.see(record(d, 2, 2), now)
	if !over(1) || over(2) {
		t.Error("the list that failed is not left for the other")
	}
	if r.failed(d, root(2), now); over(1) || over(2) {
		t.Error("of two that failed as often one is passed over")
	}
	if r.failed(d, root(1), now); !over(1) || over(2) {
		t.Error("the one that failed more often is not left for the other")
	}
	if now = now.Add(passOverFor); over(1) {
		t.Error("a list is passed over for ever")
	}
}

func TestRoots_WhatCameIsNotLeftForAForger(t *testing.T) {
	d, now := digest.FromString("blob"), time.Now()
	var r roots
	honest, forged := record(d, 1, 1), record(d, 2, 2)
	r.see(honest, now)
	r.see(forged, now)
	if r.passOver(forged, true, now) {
		t.Error("a forger's list is passed over though nothing is here")
	}
	r.begins(d, honest.Root, now)
	if !r.passOver(forged, true, now) || r.passOver(forged, false, now) || r.passOver(honest, true, now) {
		t.Error("not the forger's list alone is passed over")
	}
	if r.passOver(forged, true, now.Add(forgerWaits)) {
		t.Error("it is passed over for ever")
	}
	if r.dropped(d); r.passOver(forged, true, now) {
		t.Error("it is passed over for what was thrown away")
	}
}

func TestRoots_AreBounded(t *testing.T) {
	now := time.Now()
	var r roots
	for i := range 2 * maxRoots {
		d := digest.FromString(strconv.Itoa(i))
		for k := range byte(2) {
			r.see(record(d, k, k), now)
		}
	}
	d := digest.FromString("blob")
	for k := range byte(2 * maxRecords) {
		r.see(record(d, k, k), now)
	}
	if len(r.blobs) != maxRoots || len(r.order) != maxRoots || len(r.blobs[d].records) != maxRecords || len(r.disputes) != maxDisputes {
		t.Errorf("%d blobs, %d in order, %d records, %d disputes", len(r.blobs), len(r.order), len(r.blobs[d].records), len(r.disputes))
	}
}

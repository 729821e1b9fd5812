package transfer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

// keeper is an exchange in which one other site takes its time.
type keeper struct {
	Exchange
	self identity.NodeID
	far  func(blobs int) syncer.Kept
}

func (k keeper) Peers() []syncer.PeerStatus { return nil }

func (k keeper) Keep(_ context.Context, node identity.NodeID, _ identity.ProjectID, _ string, want []syncer.Piece) (syncer.Kept, error) {
	if node != k.self {
		return k.far(len(want)), nil
	}
	out := syncer.Kept{Kept: make([]bool, len(want))}
	for i := range out.Kept {
		out.Kept[i] = true
	}
	return out, nil
}

// twoSites is a reconciler at one of two sites, and their project.
func twoSites(t *testing.T, far func(blobs int) syncer.Kept) (*Reconciler, state.Project) {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pid := identity.NewProjectID()
	s, err := meshOfOne(id, identity.NewStoreID(), pid)
	if err != nil {
		t.Fatal(err)
	}
	apply := func(body command.Body) int64 {
		env, err := command.New("user:admin", time.Now(), body)
		if err != nil {
			t.Fatal(err)
		}
		done, err := s.Apply(s.View().Index()+1, env)
		if err != nil {
			t.Fatal(err)
		}
		return done.ID
	}
	hash := [32]byte{1}
	token := apply(&command.TokenCreate{Site: "nyc", SecretHash: hash[:], ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()})
	box, sig := other.BoxKey()
	storeID := identity.NewStoreID()
	apply(&command.NodeJoin{TokenId: token, SecretHash: hash[:], Site: "nyc",
		Node: &command.Node{Id: other.ID[:], BoxKey: box[:], BoxSignature: sig, StoreId: storeID[:], Host: "127.0.0.1", GossipPort: 7946, ControlPort: 7947, DataPort: 7948,
			RegistryUrl: "http://127.0.0.1:5001", Level: command.Level, Version: "test"}})
	p, ok := s.View().ProjectByPID(pid)
	if !ok {
		t.Fatal("no project")
	}
	return &Reconciler{cfg: Config{Self: id.ID, Site: "fra", State: s, Now: time.Now, Sync: keeper{self: id.ID, far: far}}}, p
}

// TestHold_WaitsAsLongAsSomethingMoves: a push of which bytes arrive goes on for as long as
// what was kept for it first is kept, and one that stands still ends, with the name of the site.
func TestHold_WaitsAsLongAsSomethingMoves(t *testing.T) {
	piece := []syncer.Piece{{Digest: digest.FromString("one"), Size: 1 << 30}, {Digest: digest.FromString("two"), Size: 1 << 30}}
	const pace = holdStill - 2*keepMost // between two pieces; a question may come later by a pause
	for name, c := range map[string]struct {
		moves time.Duration // for so long
		whole time.Duration // after so long it has all; 0: never
		ends  time.Duration
		err   bool
	}{
		"it moves, and is there in the end": {moves: 10 * time.Hour, whole: 10 * time.Hour, ends: 10 * time.Hour},
		"it moves, and then no more":        {moves: 40 * pace, ends: 40*pace + holdStill, err: true},
		"it never moves":                    {ends: holdStill, err: true},
		"it moves for a day":                {moves: 100 * time.Hour, whole: 25 * time.Hour, ends: holdMost, err: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				r, p := twoSites(t, func(blobs int) syncer.Kept {
					took := time.Since(begun)
					out := syncer.Kept{Kept: make([]bool, blobs), Reason: onItsWay, Done: int64(min(took, c.moves) / pace)}
					for i := range out.Kept {
						out.Kept[i] = c.whole > 0 && took >= c.whole
					}
					return out
				})
				_, err := r.Hold(t.Context(), p, "app", piece, 2)
				took := time.Since(begun)
				if took < c.ends || took > c.ends+2*keepMost {
					t.Errorf("it ended after %s instead of %s", took, c.ends)
				}
				var few *tags.NotDurable
				if errors.As(err, &few) != c.err || err != nil && !c.err {
					t.Fatalf("after %s: %v", took, err)
				}
				if c.err && (few.Have != 1 || few.Want != 2 || few.Visible || len(few.Away) != 1 || few.Away[0].Site != "nyc" || few.RetryAfter == 0) {
					t.Errorf("it says %+v", few)
				}
			})
		})
	}
}

// TestHold_OneBlobThatFailsEndsNotWhatMoves: a site that cannot get one of the blobs at the
// moment, and says so, goes on with the others.
func TestHold_OneBlobThatFailsEndsNotWhatMoves(t *testing.T) {
	const whole = 10 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		r, p := twoSites(t, func(blobs int) syncer.Kept {
			took := time.Since(begun)
			out := syncer.Kept{Kept: make([]bool, blobs), Reason: "no holder can be reached", Done: int64(took)}
			for i := range out.Kept {
				out.Kept[i] = took >= whole
			}
			return out
		})
		piece := []syncer.Piece{{Digest: digest.FromString("one"), Size: 1 << 30}, {Digest: digest.FromString("two"), Size: 1 << 30}}
		if _, err := r.Hold(t.Context(), p, "app", piece, 2); err != nil || time.Since(begun) < whole {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
	})
}

// heldAt runs holdAt with what the other site answers, and says when it was slow.
func heldAt(t *testing.T, far func(took time.Duration) syncer.Kept) (took, slow time.Duration, err error) {
	begun := time.Now()
	r, p := twoSites(t, func(int) syncer.Kept { return far(time.Since(begun)) })
	node := r.candidates(r.cfg.State.View(), p, "app")[1]
	blobs := []syncer.Piece{{Digest: digest.FromString("one"), Size: 1 << 30}, {Digest: digest.FromString("two"), Size: 1 << 30}}
	err = r.holdAt(t.Context(), node, p, "app", blobs, func(n news) {
		if n == toldSlow {
			slow = time.Since(begun)
		}
	})
	return time.Since(begun), slow, err
}

// TestHold_WhatFailedCountsAnew: of two blobs one had come far when its attempt failed;
// the other one moves on, with less in all than before.
func TestHold_WhatFailedCountsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const whole = 10 * time.Minute
		took, slow, err := heldAt(t, func(took time.Duration) syncer.Kept {
			out := syncer.Kept{Kept: []bool{false, false}, Reason: "no holder can be reached", Done: int64(took)}
			if took < time.Second {
				out.Done += int64(time.Hour)
			}
			if took >= whole {
				out.Kept = []bool{true, true}
			}
			return out
		})
		if err != nil || took < whole {
			t.Errorf("after %s: %v", took, err)
		}
		if slow == 0 || slow > keepStall+2*keepMost {
			t.Errorf("another site is asked after %s, though a blob has failed since the start", slow)
		}
	})
}

// TestHold_WhoFailsAndDoesNotMoveEnds: after what moved is there, or moves no more.
func TestHold_WhoFailsAndDoesNotMoveEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const moves = time.Minute
		took, _, err := heldAt(t, func(took time.Duration) syncer.Kept {
			return syncer.Kept{Kept: []bool{false, false}, Reason: "no holder can be reached", Done: int64(min(took, moves))}
		})
		if err == nil || err.Error() != "no holder can be reached" || took < moves+keepStall || took > moves+keepStall+3*keepMost {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// TestHold_EndsBeforeWhatItReliesOn: the first lease and the claims of a push that is
// answered have not ended.
func TestHold_EndsBeforeWhatItReliesOn(t *testing.T) {
	for what, lasts := range map[string]time.Duration{"lease": store.LeaseFor, "claim": claimFor} {
		if holdMost+coverWithin >= lasts {
			t.Errorf("a push may take %s, and a %s lasts %s", holdMost, what, lasts)
		}
	}
}

// TestHold_EndsWithItsClient: a push that moves goes on no longer.
func TestHold_EndsWithItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		r, p := twoSites(t, func(blobs int) syncer.Kept {
			return syncer.Kept{Kept: make([]bool, blobs), Reason: onItsWay, Done: int64(time.Since(begun))}
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel)
		_, err := r.Hold(ctx, p, "app", []syncer.Piece{{Digest: digest.FromString("one"), Size: 1 << 30}}, 2)
		if took := time.Since(begun); !errors.Is(err, context.Canceled) || took != time.Hour {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

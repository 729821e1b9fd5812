package sync

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// The exchange between real nodes is tested in package transfer, where they
// have all of their parts.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestClockOffset(t *testing.T) {
	at := func(d time.Duration) int64 { return 1_700_000_000_000_000_000 + int64(d) }
	for _, tc := range []struct {
		name                            string
		asked, received, sent, answered time.Duration
		offset, rtt                     time.Duration
	}{
		{"clocks agree", 0, 40, 50, 90, 0, 80},
		{"the peer is an hour ahead", 0, time.Hour + 40, time.Hour + 50, 90, time.Hour, 80},
		{"the peer is a day behind", 0, 40 - 24*time.Hour, 50 - 24*time.Hour, 90, -24 * time.Hour, 80},
		{"the peer took long to answer", 0, 40, time.Minute, time.Minute + 40, 0, 80},
		{"our clock was set back meanwhile", 0, 40, 50, -1000, 545, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			offset, rtt := clockOffset(at(tc.asked), at(tc.received), at(tc.sent), at(tc.answered))
			if offset != tc.offset || rtt != tc.rtt {
				t.Errorf("offset %s, round trip %s: want %s, %s", offset, rtt, tc.offset, tc.rtt)
			}
		})
	}
}

func TestVectorHash(t *testing.T) {
	a, b := catalog.Vector{1: 5, 2: 7}, catalog.Vector{2: 7, 1: 5}
	if vectorHash(a) != vectorHash(b) {
		t.Error("equal vectors, unequal hashes")
	}
	b[2]++
	if vectorHash(a) == vectorHash(b) {
		t.Error("unequal vectors, equal hashes")
	}
}

// A project is in the queue once, however often it is asked for; one that is
// asked for while it is pulled is pulled once more.
func TestLink_Coalesces(t *testing.T) {
	l := newLink(nil, identity.NodeID{1})
	p, q := identity.NewProjectID(), identity.NewProjectID()
	first := l.request(p)
	if l.request(p) != first {
		t.Error("two calls for one pull that has not begun")
	}
	l.request(q)
	pid, c := l.next()
	if pid != p || c != first {
		t.Fatal("not the oldest first")
	}
	again := l.request(p)
	if again == first || l.request(p) != again {
		t.Error("a request during the pull must wait for another one, all for the same")
	}
	if diff := cmp.Diff([]identity.ProjectID{q}, l.queue); diff != "" {
		t.Errorf("a project must not be pulled twice at a time (-want +got):\n%s", diff)
	}
	boom := errors.New("boom")
	l.finish(p, c, boom)
	if err := waitAll(context.Background(), []*call{first}); !errors.Is(err, boom) {
		t.Errorf("the first call ended with %v", err)
	}
	if diff := cmp.Diff([]identity.ProjectID{q, p}, l.queue); diff != "" {
		t.Errorf("queue (-want +got):\n%s", diff)
	}
	l.closed = true
	if _, c := l.next(); c != nil {
		t.Error("next after the end")
	}
	if c := l.request(identity.NewProjectID()); waitAll(context.Background(), []*call{c}) == nil {
		t.Error("a request after the end goes well")
	}
}

// One pull of a project waits for another one, but not for long.
func TestSync_Courtesy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Sync{pulling: map[identity.ProjectID]chan struct{}{}}
		pid := identity.NewProjectID()
		hangs := s.courteous(t.Context(), pid)
		begun := time.Now()
		done := s.courteous(t.Context(), pid)
		if waited := time.Since(begun); waited != courtesy {
			t.Errorf("waited %s for a pull that hangs", waited)
		}
		done()
		go func() {
			time.Sleep(time.Second)
			hangs()
		}()
		begun = time.Now()
		s.courteous(t.Context(), pid)()
		if waited := time.Since(begun); waited != time.Second {
			t.Errorf("waited %s for a pull that ended after a second", waited)
		}
	})
}

// A site that hangs costs one client two seconds, and the next ones a grace, until
// it answers; those who answer are waited for all the same.
func TestSync_AHangingSiteIsWaitedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad := newLink(nil, identity.NodeID{1}), newLink(nil, identity.NodeID{2})
		pid := identity.NewProjectID()
		ask := func(ctx context.Context) (late []*link, took time.Duration) {
			begun := time.Now()
			calls := map[*link]*call{good: good.request(pid), bad: bad.request(pid)}
			if _, c := good.next(); c != nil {
				time.AfterFunc(time.Second, func() { good.finish(pid, c, nil) })
			}
			late = awaitLinks(ctx, pid, calls)
			return late, time.Since(begun)
		}
		want := func(when string, late []*link, took, most time.Duration) {
			t.Helper()
			if len(late) != 1 || late[0] != bad || took != most {
				t.Errorf("%s: late %v after %s, want the one that hangs after %s", when, late, took, most)
			}
		}
		impatient, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		late, took := ask(impatient)
		want("a client that leaves before", late, took, 1500*time.Millisecond)
		late, took = ask(t.Context())
		want("the first", late, took, pullProjectWithin)
		late, took = ask(t.Context())
		want("the next", late, took, time.Second) // as long as the good one takes
		if other := identity.NewProjectID(); bad.hangs(other) {
			t.Error("another project has nothing to do with it")
		}
		_, c := bad.next()
		bad.finish(pid, c, nil)
		late, took = ask(t.Context())
		want("after it has answered", late, took, pullProjectWithin)
	})
}

func TestHints_WrittenGoesBeforeLearned(t *testing.T) {
	var h hints
	h.init()
	p, q := identity.NewProjectID(), identity.NewProjectID()
	h.onCommit(p)
	h.onLocalWrite(p)
	h.onCommit(q)
	h.onFeed()
	written, feed, learned := h.take()
	if !written[p] || written[q] || !feed || !learned {
		t.Errorf("take: %v, %v, %v", written, feed, learned)
	}
	if got := h.takeLearned(); got[p] || !got[q] {
		t.Errorf("learned: %v", got)
	}
	if written, feed, learned := h.take(); len(written) > 0 || feed || learned {
		t.Error("nothing is left to announce")
	}
}

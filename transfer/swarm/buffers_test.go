package swarm

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// unused says whether nobody has room, or waits for some.
func (b *buffers) unused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used == [classes]int64{} && len(b.line) == 0
}

// waiting is how many wait for room.
func (b *buffers) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.line)
}

// of is a need of a class.
func (c class) of() need {
	return need{at: func() (class, rank, <-chan struct{}) { return c, rank{}, nil }}
}

// taking takes room in the background and gives it back when it is told to.
type taking struct {
	free  chan struct{}
	given atomic.Bool
	err   error
}

func (b *buffers) taking(ctx context.Context, n int64, of need) *taking {
	w := &taking{free: make(chan struct{})}
	go func() {
		data, free, err := b.take(ctx, n, of)
		if w.err = err; err != nil {
			return
		}
		if int64(len(data)) != n {
			panic("room of another size than was asked for")
		}
		w.given.Store(true)
		<-w.free
		free()
	}()
	synctest.Wait()
	return w
}

// Whatever units come slowly, and of whatever class, each class has room for one of the
// largest blobs at once, and clients for two.
func TestBuffers_EachClassHasItsShare(t *testing.T) {
	for greedy := range classes {
		synctest.Test(t, func(t *testing.T) {
			b := newBuffers()
			var all []*taking
			has := int64(0)
			for range bufferBytes / mib {
				w := b.taking(t.Context(), mib, greedy.of())
				if all = append(all, w); w.given.Load() {
					has += mib
				}
			}
			want := int64(bufferBytes)
			for c := range classes {
				if c == greedy {
					continue
				}
				want -= leastBuffers[c]
				for range leastBuffers[c] / (8 * mib) {
					w := b.taking(t.Context(), 8*mib, c.of())
					if all = append(all, w); !w.given.Load() {
						t.Errorf("class %d has all that is kept for class %d", greedy, c)
					}
				}
			}
			if has != want {
				t.Errorf("class %d has %d MiB, want %d", greedy, has/mib, want/mib)
			}
			for _, w := range all {
				close(w.free)
			}
			synctest.Wait()
			if !b.unused() {
				t.Error("room was not given back")
			}
		})
	}
}

// Who came first is not passed by those of its own class; clients pass all others.
func TestBuffers_InLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers()
		var all []*taking
		for range (bufferBytes - leastBuffers[classClient] - leastBuffers[classHurried]) / mib {
			all = append(all, b.taking(t.Context(), mib, classReplication.of()))
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := b.taking(ctx, 8*mib, classReplication.of())
		huge := b.taking(t.Context(), 8*mib, classReplication.of())
		small := b.taking(t.Context(), mib, classReplication.of())
		close(all[0].free)
		synctest.Wait()
		if gone.given.Load() || huge.given.Load() || small.given.Load() {
			t.Error("there is 1 MiB for what waits first with 8")
		}
		cancel()
		for _, w := range all[1:8] {
			if huge.given.Load() {
				t.Error("it has more than there is")
			}
			close(w.free)
			synctest.Wait()
		}
		if !errors.Is(gone.err, context.Canceled) || !huge.given.Load() || small.given.Load() {
			t.Errorf("who left: %v; the next one has room: %v; the one behind it: %v", gone.err, huge.given.Load(), small.given.Load())
		}
		close(all[8].free)
		synctest.Wait()
		if !small.given.Load() {
			t.Error("there is room for the last one")
		}
		for _, w := range append(all[9:], huge, small) {
			close(w.free)
		}
		synctest.Wait()
		if !b.unused() {
			t.Error("room was not given back")
		}
	})
}

// What a client comes to while it waits is the client's from then on.
func TestBuffers_AClientCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers()
		var all []*taking
		for range bufferBytes / mib {
			all = append(all, b.taking(t.Context(), mib, classReplication.of()))
		}
		came, now := make(chan struct{}), classReplication
		w := b.taking(t.Context(), 8*mib, need{at: func() (class, rank, <-chan struct{}) {
			if now == classClient {
				return now, rank{}, nil
			}
			return now, rank{}, came
		}})
		if w.given.Load() {
			t.Fatal("rules have what is kept for clients")
		}
		now = classClient
		close(came)
		synctest.Wait()
		if !w.given.Load() {
			t.Error("a client waits behind rules")
		}
		for _, w := range append(all, w) {
			close(w.free)
		}
		synctest.Wait()
		if !b.unused() {
			t.Error("room was not given back")
		}
	})
}

// Rules have all the memory for units that they may have, of holders that send slowly:
// a client reads through all the same, also what a rule waits for.
func TestOpenBlob_RulesHaveNotAllBuffers(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	w := a.put(content(odd))
	var frees []func()
	for range (bufferBytes - leastBuffers[classClient] - leastBuffers[classHurried]) / mib {
		_, free, err := b.swarm.buffers.take(t.Context(), mib, need{})
		l.check(err)
		frees = append(frees, free)
	}
	rule := b.fetching(w)
	eventually(t, "the rule's unit waits", func() bool { return b.swarm.buffers.waiting() == 1 })
	if b.got() > 0 {
		t.Errorf("%d units came", b.got())
	}
	r, err := b.swarm.OpenBlob(t.Context(), w)
	l.check(err)
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != odd {
		t.Errorf("%d bytes, %v", n, err)
	}
	l.check(<-rule)
	for _, free := range frees {
		free()
	}
	eventually(t, "room is given back", b.swarm.buffers.unused)
}

package swarm

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

func TestLimit_SharesOneRateInTurn(t *testing.T) {
	const mbit = 1_000_000
	l := NewLimit(20 * mbit)
	start := time.Now()
	now := start
	var flights [3]*place
	var got [3]int64
	for now.Sub(start) < 20*time.Second {
		for i, p := range flights {
			if p != nil && !p.at.After(now) {
				got[i] += p.n
				p = nil
			}
			if p == nil {
				next := l.queue(units.Unit, now)
				p = &next
			}
			flights[i] = p
		}
		now = now.Add(10 * time.Millisecond)
		all := got[0] + got[1] + got[2]
		if most := int64(now.Sub(start).Seconds()*20*mbit/8) + units.Unit; all > most {
			t.Fatalf("after %s there are %d bytes, more than %d", now.Sub(start), all, most)
		}
	}
	all := got[0] + got[1] + got[2]
	if least := int64(20*20*mbit/8) - 3*units.Unit; all < least {
		t.Errorf("%d bytes in 20 s, want %d at least", all, least)
	}
	for i, n := range got {
		if n < all/3-units.Unit || n > all/3+units.Unit {
			t.Errorf("flight %d got %d of %d bytes", i, n, all)
		}
	}
}

func TestLimit_SetIsNoWayAroundIt(t *testing.T) {
	l, now := NewLimit(8_000_000), time.Now()
	if p := l.queue(units.Unit, now); p.at.After(now) {
		t.Fatal("the first unit waits")
	}
	waits := l.queue(units.Unit, now)
	if !waits.at.After(now) || !waits.stands() {
		t.Fatal("the second unit does not wait")
	}
	l.setAt(16_000_000, now)
	if waits.stands() {
		t.Error("a place in line outlives the rate")
	}
	if l.more(units.Unit, now) {
		t.Error("a change of the rate gives bytes")
	}
	// A unit beyond what is saved up is granted in time, and paid for.
	big := l.queue(64*units.Unit, now)
	if wait := big.at.Sub(now).Seconds(); wait < 33 || wait > 34 {
		t.Errorf("64 MiB at 2 MB/s wait for %.1f s", wait)
	}
	l.setAt(0, now)
	if big.stands() || !l.more(1<<40, now) || l.queue(1<<40, now).at.After(now) {
		t.Error("something waits without a limit")
	}
}

func TestLimit_WhatIsGivenBackIsTakenFirst(t *testing.T) {
	l, now := NewLimit(8_000_000), time.Now()
	p := l.queue(units.Unit, now)
	p.giveBack(units.Unit / 2)
	if p := l.queue(units.Unit/2, now); p.at.After(now) {
		t.Error("what was given back is lost")
	}
	if p := l.queue(1000, now); !p.at.After(now) {
		t.Error("it was given twice")
	}
	l.setAt(16_000_000, now)
	p.giveBack(units.Unit / 2)
	if l.more(1, now) {
		t.Error("what was granted under another rate was given back")
	}
}

// Places in the line that nobody comes for hold up nobody, however many they are, and
// let nobody have more than the rate.
func TestLimit_WhoLeavesTheLineTakesNoTime(t *testing.T) {
	l, now := NewLimit(8_000_000), time.Now()
	l.queue(units.Unit, now) // what was saved up
	var left []place
	for range 64 {
		left = append(left, l.queue(units.Unit, now))
	}
	for _, p := range left {
		p.giveBack(p.n)
	}
	for i := 1; i <= 3; i++ {
		want := time.Duration(i) * l.takes(units.Unit)
		if wait := l.queue(units.Unit, now).at.Sub(now); (wait - want).Abs() > time.Microsecond {
			t.Errorf("unit %d waits %s, want %s", i, wait, want)
		}
	}
}

// A rule's rate is for what comes: fetches whose holders are away take none of it.
func TestFetch_HoldersThatAreAwayTakeNoRate(t *testing.T) {
	l := newLab(t)
	source, n := l.start(), l.start()
	l.held(source)
	const size = 200 << 10
	limit, now := NewLimit(8_000), time.Now() // a kilobyte a second
	limit.queue(units.Unit, now)              // what was saved up
	one := limit.queue(size, now)
	one.giveBack(2 * size) // there is enough for one of them, all the time
	var wants []Want
	for range 3 {
		w := source.put(content(size))
		w.Limit = limit
		wants = append(wants, w)
	}
	source.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // a second one would wait for minutes
	defer cancel()
	for _, w := range wants {
		var u *store.Unreachable
		if err := n.swarm.Fetch(ctx, w); !errors.As(err, &u) {
			t.Fatalf("%v, want that its holder is unreachable", err)
		}
	}
}

func TestFetch_BlobsShareTheirLimit(t *testing.T) {
	const bits = 20_000_000
	l := newLab(t)
	source, n := l.start(), l.start()
	bodies := [][]byte{content(2*mib + 5), content(2*mib + 7), content(4000)}
	limit, total := NewLimit(bits), 0
	l.held(source)
	var wants []Want
	for _, b := range bodies {
		w := source.put(b)
		w.Limit = limit
		wants = append(wants, w)
		total += len(b)
	}
	begun := time.Now()
	var wg sync.WaitGroup
	for _, w := range wants {
		wg.Go(func() {
			if err := n.swarm.Fetch(t.Context(), w); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	took := time.Since(begun)
	if least := time.Duration(float64(int64(total)-units.Unit) * 8 / bits * float64(time.Second)); took < least {
		t.Errorf("%d bytes came in %s, at 20 Mbit/s they take %s", total, took, least)
	}
	for _, b := range bodies {
		n.has(b)
	}
}

func TestFetch_WaitingForItsRateIsNoStall(t *testing.T) {
	l := newLab(t)
	l.stall = time.Second
	source, n := l.start(), l.start()
	body := content(2*mib - 5)
	w := source.put(body)
	w.Limit = NewLimit(4_000_000) // a unit takes two seconds
	l.held(source)
	if err := n.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	n.has(body)
	for _, reason := range []string{"silent", "unreachable", "bad", "refused"} {
		if got := n.failovers(reason); got != 0 {
			t.Errorf("%d failovers: %s", got, reason)
		}
	}
}

// crawl begins a fetch that would take minutes, and waits until it is held.
func (l *lab) crawl(n *node, w Want) (fetched chan error) {
	l.t.Helper()
	fetched = make(chan error, 1)
	ctx := l.t.Context()
	go func() { fetched <- n.swarm.Fetch(ctx, w) }()
	eventually(l.t, "a flight in line", func() bool {
		n.swarm.mu.Lock()
		f := n.swarm.flights[w.Digest]
		n.swarm.mu.Unlock()
		if f == nil {
			return false
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.held.place != nil
	})
	return fetched
}

// soon takes a fetch's end, far before its limit would allow it.
func (l *lab) soon(fetched chan error) {
	l.t.Helper()
	select {
	case err := <-fetched:
		l.check(err)
	case <-time.After(20 * time.Second):
		l.t.Fatal("it is still held")
	}
}

func TestFetch_LimitHoldsNoReaderAndLetsGoAtOnce(t *testing.T) {
	for name, letGo := range map[string]func(*testing.T, *node, Want){
		"a client reads it": func(t *testing.T, n *node, w Want) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			b, err := n.swarm.OpenBlob(ctx, w)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if got, err := io.Copy(io.Discard, b); err != nil || got != w.Size {
				t.Fatalf("%d bytes: %v", got, err)
			}
		},
		"the limit goes": func(_ *testing.T, _ *node, w Want) { w.Limit.Set(0) },
		"a fetch without one": func(t *testing.T, n *node, w Want) {
			w.Limit = nil
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := n.swarm.Fetch(ctx, w); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, size := range []int{3*mib + 1, mib / 2} {
			t.Run(name+" "+itoa(size), func(t *testing.T) {
				l := newLab(t)
				source, n := l.start(), l.start()
				body := content(size)
				w := source.put(body)
				w.Limit = NewLimit(100_000)
				w.Limit.queue(units.Unit, time.Now()) // nothing is saved up
				l.held(source)
				fetched := l.crawl(n, w)
				letGo(t, n, w)
				l.soon(fetched)
				n.has(body)
			})
		}
	}
}

package swarm

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

// drain takes units as they are granted, from so many places at a time, until the time
// is over, and gives what each place got.
func drain(l *Limit, places int, lasts time.Duration) []int64 {
	got := make([]int64, places)
	end := time.Now().Add(lasts)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			for {
				woken := make(chan struct{}, 1)
				p := l.queue(units.Unit, func() { woken <- struct{}{} })
				if !p.granted() {
					select {
					case <-woken:
					case <-time.After(time.Until(end)):
						p.leave()
						return
					}
				}
				got[i] += p.n
			}
		})
	}
	wg.Wait()
	return got
}

func TestLimit_SharesOneRateInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bits = 20_000_000
		got := drain(NewLimit(bits), 3, 20*time.Second)
		all := got[0] + got[1] + got[2]
		if least, most := int64(20*bits/8)-units.Unit, int64(20*bits/8)+units.Unit; all < least || all > most {
			t.Errorf("%d bytes in 20 s, want %d to %d", all, least, most)
		}
		for i, n := range got {
			if n < all/3-units.Unit || n > all/3+units.Unit {
				t.Errorf("flight %d got %d of %d bytes", i, n, all)
			}
		}
	})
}

// in says when a place is granted, from now on.
func in(t *testing.T, l *Limit, n int64) (p *place, granted func() time.Duration) {
	begun := time.Now()
	var at time.Time
	p = l.queue(n, func() { at = time.Now() })
	if p.granted() {
		at = begun
	}
	return p, func() time.Duration {
		if at.IsZero() {
			return -1
		}
		return at.Sub(begun)
	}
}

func TestLimit_SetIsNoWayAroundIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(8_000_000)
		first, _ := in(t, l, units.Unit)
		_, second := in(t, l, units.Unit)
		if !first.granted() || second() >= 0 {
			t.Fatal("not the second of two units waits")
		}
		l.Set(16_000_000)
		if l.more(units.Unit) || second() >= 0 {
			t.Error("a change of the rate gives bytes")
		}
		// A unit beyond what is saved up is granted in time, and paid for.
		_, big := in(t, l, 64*units.Unit)
		<-time.After(time.Minute)
		synctest.Wait()
		if wait := second().Seconds(); wait < 0.5 || wait > 0.6 {
			t.Errorf("1 MiB at 2 MB/s waits for %.1f s", wait)
		}
		if wait := big().Seconds(); wait < 34 || wait > 35 {
			t.Errorf("64 MiB at 2 MB/s, behind another, wait for %.1f s", wait)
		}
		_, never := in(t, l, 1<<40)
		l.Set(0)
		synctest.Wait()
		if never() != 0 || !l.more(1<<40) {
			t.Error("something waits without a limit")
		}
	})
}

func TestLimit_WhatIsGivenBackIsTakenFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(8_000_000)
		p := l.queue(units.Unit, nil)
		_, second := in(t, l, units.Unit/2)
		p.giveBack(units.Unit / 2)
		synctest.Wait()
		if second() != 0 {
			t.Error("what was given back is lost")
		}
		if l.more(1000) {
			t.Error("it was given twice")
		}
		l.Set(16_000_000)
		p.giveBack(units.Unit / 2)
		if l.more(1) {
			t.Error("what was granted under another rate was given back")
		}
	})
}

// Who leaves the line takes no time of those behind, and lets nobody have more than the
// rate, wherever they stand and however many they are.
func TestLimit_WhoLeavesTheLineTakesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1000
		l := NewLimit(8 * uint64(units.Unit)) // a unit a second
		l.queue(units.Unit, nil)              // what was saved up
		begun := time.Now()
		var leave []*place
		var mu sync.Mutex
		var at []time.Duration
		stay := func() {
			l.queue(units.Unit, func() {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(begun))
			})
		}
		for range n {
			leave = append(leave, l.queue(units.Unit, func() { t.Error("who left was granted something") }))
			stay()
		}
		for _, p := range leave {
			p.leave()
			stay()
		}
		<-time.After((2*n + 1) * time.Second)
		synctest.Wait()
		if len(at) != 2*n {
			t.Fatalf("%d of %d were granted", len(at), 2*n)
		}
		for i, got := range at {
			if want := time.Duration(i+1) * time.Second; (got - want).Abs() > time.Millisecond {
				t.Fatalf("number %d waited %s, want %s", i, got, want)
			}
		}
	})
}

// What large units wait for is not put off by what others give back.
func TestLimit_GivingBackPutsNobodyOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(8 * uint64(units.Unit))
		p := l.queue(units.Unit, nil)
		_, large := in(t, l, 8*units.Unit)
		for range 9 {
			<-time.After(time.Second)
			p.giveBack(0)
		}
		synctest.Wait()
		if got := large(); got < 0 || got > 8*time.Second {
			t.Errorf("8 units at one a second were granted after %s", got)
		}
	})
}

// A rule's rate is for what comes: fetches whose holders are away take none of it.
func TestFetch_HoldersThatAreAwayTakeNoRate(t *testing.T) {
	l := newLab(t)
	source, n := l.start(), l.start()
	l.held(source)
	const size = 200 << 10
	limit := NewLimit(8_000)          // a kilobyte a second
	limit.queue(units.Unit-size, nil) // there is enough for one of them, all the time
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
				w.Limit.queue(units.Unit, nil) // nothing is saved up
				l.held(source)
				fetched := l.crawl(n, w)
				letGo(t, n, w)
				l.soon(fetched)
				n.has(body)
			})
		}
	}
}

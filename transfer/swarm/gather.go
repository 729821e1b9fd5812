package swarm

import (
	"bufio"
	"sync"
	"time"
)

const (
	// gatherBytes is how much of small answers is written at once: a message and
	// a blob of 10 KB each in a write of its own cost more than their bytes.
	gatherBytes = 32 << 10
	// gatherFor is how long an answer waits for others at most. It waits only while
	// further requests are here.
	gatherFor = 2 * time.Millisecond
	// gatherParked is the same for those that were waited for, some hundred times as
	// long, and land one by one; while others are waited for still.
	gatherParked = 10 * time.Millisecond
	// requestsBytes is what is read of requests at once: some 25.
	requestsBytes = 4 << 10
)

// gatherer writes the answers to requests that came together in few writes. What
// is larger than it gathers goes through. One goroutine reads; who writes an answer
// has the turn.
type gatherer struct {
	stream
	in     *bufio.Reader
	idle   time.Duration // how long a request may be waited for
	rolled time.Time     // when the deadline for reads was moved last

	turn sync.Mutex // held for a whole answer

	mu      sync.Mutex
	out     []byte // nil: nothing waits
	pressed bool   // some of it is to go before the next request is waited for
	timer   *time.Timer
	err     error // of a write
}

// parkedOut is a gatherer to those that write what was waited for.
type parkedOut struct{ *gatherer }

func (o parkedOut) Write(p []byte) (int, error) { return o.gather(p, false) }

func newGatherer(st stream, idle time.Duration) *gatherer {
	g := &gatherer{stream: st, idle: idle, in: bufio.NewReaderSize(st, requestsBytes)}
	g.timer = time.AfterFunc(time.Hour, func() {
		if g.flush() != nil {
			_ = st.Reset() // nobody may write again, to see it
		}
	})
	g.timer.Stop()
	return g
}

// Read reads requests. Before it waits for one, all that was answered at once goes out.
func (g *gatherer) Read(p []byte) (int, error) {
	if g.in.Buffered() == 0 {
		if err := g.flushPressed(); err != nil {
			return 0, err
		}
		// Of reads alone: answers are written meanwhile. A timer costs more than a read.
		if now := time.Now(); now.Sub(g.rolled) > g.idle/8 {
			g.rolled = now
			if err := g.SetReadDeadline(now.Add(g.idle)); err != nil {
				return 0, err
			}
		}
	}
	return g.in.Read(p)
}

func (g *gatherer) Write(p []byte) (int, error) { return g.gather(p, true) }

func (g *gatherer) gather(p []byte, pressed bool) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.out)+len(p) > gatherBytes {
		g.write()
	}
	if g.err != nil {
		return 0, g.err
	}
	if len(p) > gatherBytes/2 {
		g.write() // in order
		if g.err != nil {
			return 0, g.err
		}
		n, err := g.stream.Write(p)
		g.err = err
		return n, err
	}
	if g.out == nil {
		g.out = make([]byte, 0, gatherBytes)
		g.timer.Reset(gatherParked)
	}
	if pressed && !g.pressed {
		g.pressed = true
		g.timer.Reset(gatherFor)
	}
	g.out = append(g.out, p...)
	return len(p), nil
}

func (g *gatherer) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.write()
	return g.err
}

func (g *gatherer) flushPressed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pressed {
		g.write()
	}
	return g.err
}

// write writes what waits; mu is held.
func (g *gatherer) write() {
	if g.out == nil {
		return
	}
	g.timer.Stop()
	if g.err == nil {
		_, g.err = g.stream.Write(g.out)
	}
	g.out, g.pressed = nil, false
}

// end stops the timer. What waits is dropped: it is the end of the stream.
func (g *gatherer) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer.Stop()
	g.out = nil
}

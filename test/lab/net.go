package lab

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// Net is the links between the sites. Each direction has its own delay and is
// cut by itself.
type Net struct {
	mu      sync.Mutex
	changed chan struct{} // closed when a cut is made or healed
	cut     map[direction]bool
	delay   func(from, to string) time.Duration
	conns   map[*conn]struct{}
}

type direction struct{ from, to string }

func newNet() *Net {
	return &Net{changed: make(chan struct{}), cut: make(map[direction]bool), conns: make(map[*conn]struct{}),
		delay: func(string, string) time.Duration { return 0 }}
}

// Delay is how long everything takes one way from now on: half a round trip.
func (n *Net) Delay(d time.Duration) { n.DelayBy(func(string, string) time.Duration { return d }) }

// DelayBy gives each direction its own delay, asked for with every write; f may
// be called concurrently.
func (n *Net) DelayBy(f func(from, to string) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = f
}

// Cut cuts one direction.
func (n *Net) Cut(from, to string) { n.set(true, direction{from, to}) }

// CutBoth cuts a link in both directions.
func (n *Net) CutBoth(a, b string) { n.set(true, direction{a, b}, direction{b, a}) }

// Heal makes all links whole.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.tell()
}

func (n *Net) set(cut bool, links ...direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		n.cut[l] = cut
	}
	n.tell()
}

func (n *Net) tell() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// whole waits until a direction is; false: stop was first.
func (n *Net) whole(d direction, stop <-chan struct{}) bool {
	for {
		n.mu.Lock()
		cut, changed := n.cut[d], n.changed
		n.mu.Unlock()
		if !cut {
			return true
		}
		select {
		case <-changed:
		case <-stop:
			return false
		}
	}
}

func (n *Net) delayOf(d direction) time.Duration {
	n.mu.Lock()
	f := n.delay
	n.mu.Unlock()
	return f(d.from, d.to)
}

// drop closes all connections of a site, as its end by a power cut would.
func (n *Net) drop(site string) {
	n.mu.Lock()
	var of []*conn
	for c := range n.conns {
		if c.out.dir.from == site || c.out.dir.to == site {
			of = append(of, c)
		}
	}
	n.mu.Unlock()
	for _, c := range of {
		_ = c.Close()
	}
}

// dial opens a connection through the network; up to then it takes a round trip.
func (n *Net) dial(ctx context.Context, from, to string, dial func() (net.Conn, error)) (net.Conn, error) {
	there, back := direction{from, to}, direction{to, from}
	if !n.whole(there, ctx.Done()) || !n.whole(back, ctx.Done()) {
		return nil, ctx.Err()
	}
	trip := time.NewTimer(n.delayOf(there) + n.delayOf(back))
	defer trip.Stop()
	select {
	case <-trip.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	raw, err := dial()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, net: n, closed: make(chan struct{}), out: newLine(there), in: newLine(back)}
	n.mu.Lock()
	n.conns[c] = struct{}{}
	n.mu.Unlock()
	c.pumps.Add(2)
	go c.pumpOut()
	go c.pumpIn()
	return c, nil
}

// maxOnLine is how many bytes may be on their way: more than the product of
// bandwidth and delay that the tests use.
const maxOnLine = 4 << 20

// line is what is on its way in one direction.
type line struct {
	dir direction

	mu      sync.Mutex
	changed chan struct{}
	parts   []part
	bytes   int
	err     error // at the end, behind all parts
}

type part struct {
	at time.Time
	b  []byte
}

func newLine(d direction) *line { return &line{dir: d, changed: make(chan struct{})} }

func (l *line) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// put takes a copy of b, to be there at a time.
func (l *line) put(b []byte, at time.Time, late <-chan time.Time, closed <-chan struct{}) error {
	for {
		l.mu.Lock()
		if l.bytes < maxOnLine {
			if k := len(l.parts); k > 0 && l.parts[k-1].at.After(at) {
				at = l.parts[k-1].at // TCP keeps the order
			}
			l.parts = append(l.parts, part{at, append([]byte(nil), b...)})
			l.bytes += len(b)
			l.tell()
			l.mu.Unlock()
			return nil
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-late:
			return os.ErrDeadlineExceeded
		case <-closed:
			return net.ErrClosed
		}
	}
}

func (l *line) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.tell()
}

// take gives what has arrived, as much as fits into b.
func (l *line) take(b []byte, n *Net, late <-chan time.Time, closed <-chan struct{}) (int, error) {
	for {
		l.mu.Lock()
		changed := l.changed
		var due <-chan time.Time
		var timer *time.Timer
		switch {
		case len(l.parts) > 0:
			wait := time.Until(l.parts[0].at)
			if wait > 0 {
				timer = time.NewTimer(wait)
				due, changed = timer.C, nil
				break
			}
			n.mu.Lock()
			cut, healed := n.cut[l.dir], n.changed
			n.mu.Unlock()
			if cut {
				changed = healed
				break
			}
			k := copy(b, l.parts[0].b)
			if l.parts[0].b = l.parts[0].b[k:]; len(l.parts[0].b) == 0 {
				l.parts = l.parts[1:]
			}
			l.bytes -= k
			l.tell()
			l.mu.Unlock()
			return k, nil
		case l.err != nil:
			err := l.err
			l.mu.Unlock()
			return 0, err
		}
		l.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-due:
		case <-late:
			err = os.ErrDeadlineExceeded
		case <-closed:
			err = net.ErrClosed
		}
		if timer != nil {
			timer.Stop()
		}
		if err != nil {
			return 0, err
		}
	}
}

// conn is a connection with a delay in each direction.
type conn struct {
	net.Conn
	net     *Net
	out, in *line
	once    sync.Once
	closed  chan struct{}
	pumps   sync.WaitGroup

	mu     sync.Mutex
	rd, wr time.Time
}

// alarm gives a channel that fires at a deadline; nil: there is none. A
// deadline that is set later counts for later calls only, which suffices for
// raft and gRPC: they set theirs before they read or write.
func alarm(at time.Time) (<-chan time.Time, func()) {
	if at.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(at))
	return t.C, func() { t.Stop() }
}

func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rd, c.wr = t, t
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rd = t
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wr = t
	return nil
}

func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	late, stop := alarm(c.rd)
	c.mu.Unlock()
	defer stop()
	return c.in.take(b, c.net, late, c.closed)
}

func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	late, stop := alarm(c.wr)
	c.mu.Unlock()
	defer stop()
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	if err := c.out.put(b, time.Now().Add(c.net.delayOf(c.out.dir)), late, c.closed); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *conn) pumpOut() {
	defer c.pumps.Done()
	b := make([]byte, 64<<10)
	for {
		k, err := c.out.take(b, c.net, nil, c.closed)
		if err == nil {
			_, err = c.Conn.Write(b[:k])
		}
		if err != nil {
			_ = c.Conn.Close()
			return
		}
	}
}

func (c *conn) pumpIn() {
	defer c.pumps.Done()
	b := make([]byte, 64<<10)
	for {
		k, err := c.Conn.Read(b)
		if k > 0 {
			if perr := c.in.put(b[:k], time.Now().Add(c.net.delayOf(c.in.dir)), nil, c.closed); perr != nil {
				return
			}
		}
		if err != nil {
			c.in.end(err)
			return
		}
	}
}

// Close closes at once; what was written and has not arrived is lost.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		_ = c.Conn.Close()
		c.pumps.Wait()
		c.net.mu.Lock()
		delete(c.net.conns, c)
		c.net.mu.Unlock()
	})
	return nil
}

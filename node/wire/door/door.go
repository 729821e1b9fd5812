// Package door bounds the connections of a port whose other ends have not shown
// yet who they are, so that strangers can take neither all places nor the memory
// and the files of the process.
//
// Whoever comes is let in. When there are too many, the one that has waited
// longest goes, of the source (an IPv4 address, or an IPv6 /64) that has most: a
// crowd from few addresses turns itself away, and who comes from another one
// has the time that a handshake takes. Refusing those who come would be the
// other way round: the crowd would keep its places, and a member would find none.
//
//	d := door.New(256, 32, func() { refused.Inc() })
//	g := d.Enter(conn)   // nil: all who are in are at work
//	defer g.Leave()      // it has shown who it is, or is gone
//
// All methods may be called concurrently.
package door

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// Conn is what is let in: a net.Conn, or what has its address and its end.
type Conn interface {
	RemoteAddr() net.Addr
	Close() error
}

// Door counts who is within. Make it with [New].
type Door struct {
	max, perSource int
	turnedAway     func()

	mu      sync.Mutex // leaf lock: nothing is called while it is held
	n       int
	sources map[netip.Prefix]*source
}

// source is who is in from one address, the one that waits longest first.
type source struct{ waiting, working list.List }

func (s *source) len() int { return s.waiting.Len() + s.working.Len() }

// Guest is one that is in. A nil Guest may be asked for everything.
type Guest struct {
	door   *Door
	conn   Conn
	from   netip.Prefix
	tasks  int           // it is not turned away while there are any
	place  *list.Element // in waiting or working of its source; nil: it has left
	worked bool
}

// New makes a door for max guests, perSource of them from one source at most (0:
// all of them may be one's). turnedAway is called for each that goes for want of
// room; it may be nil.
func New(maxGuests, perSource int, turnedAway func()) *Door {
	if perSource <= 0 {
		perSource = maxGuests
	}
	if turnedAway == nil {
		turnedAway = func() {}
	}
	return &Door{max: maxGuests, perSource: perSource, turnedAway: turnedAway, sources: make(map[netip.Prefix]*source)}
}

// Enter lets c in, and closes another one if there is no room. It gives nil, and
// leaves c alone, if nobody can go because all are at work.
func (d *Door) Enter(c Conn) *Guest {
	from := Source(c.RemoteAddr())
	d.mu.Lock()
	s := d.sources[from]
	var out *Guest
	full := false
	switch {
	case s != nil && s.len() >= d.perSource:
		out, full = s.oldest(), true
	case d.n >= d.max:
		out, full = d.oldest(), true
	}
	if full && out == nil {
		d.mu.Unlock()
		d.turnedAway()
		return nil
	}
	if out != nil {
		out.leave()
	}
	if s = d.sources[from]; s == nil { // also if the last of it has just left
		s = &source{}
		d.sources[from] = s
	}
	g := &Guest{door: d, conn: c, from: from}
	g.place = s.waiting.PushBack(g)
	d.n++
	d.mu.Unlock()
	if out != nil {
		d.turnedAway()
		_ = out.conn.Close()
	}
	return g
}

// oldest gives who has waited longest, of the source that has most in.
func (d *Door) oldest() *Guest {
	var most *source
	for _, s := range d.sources {
		if s.waiting.Len() > 0 && (most == nil || s.len() > most.len()) {
			most = s
		}
	}
	if most == nil {
		return nil
	}
	return most.oldest()
}

func (s *source) oldest() *Guest {
	if e := s.waiting.Front(); e != nil {
		return e.Value.(*Guest)
	}
	return nil
}

// Len is how many are in.
func (d *Door) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// CloseAll closes all who are in. They leave by themselves.
func (d *Door) CloseAll() {
	d.mu.Lock()
	var all []Conn
	for _, s := range d.sources {
		for _, l := range []*list.List{&s.waiting, &s.working} {
			for e := l.Front(); e != nil; e = e.Next() {
				all = append(all, e.Value.(*Guest).conn)
			}
		}
	}
	d.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// Leave gives the place free and says whether the guest had it still: false if
// it was turned away, or had left. The connection stays as it is.
func (g *Guest) Leave() bool {
	if g == nil {
		return false
	}
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	return g.leave()
}

// leave is Leave for a caller that holds the door's lock.
func (g *Guest) leave() bool {
	if g.place == nil {
		return false
	}
	s := g.door.sources[g.from]
	g.list(s).Remove(g.place)
	g.place = nil
	g.door.n--
	if s.len() == 0 {
		delete(g.door.sources, g.from)
	}
	return true
}

func (g *Guest) list(s *source) *list.List {
	if g.tasks > 0 {
		return &s.working
	}
	return &s.waiting
}

// Work keeps the guest from being turned away until Rest was called as often.
func (g *Guest) Work() {
	if g != nil {
		g.task(1)
	}
}

// Rest ends what Work began. Who rests waits from now on.
func (g *Guest) Rest() {
	if g != nil {
		g.task(-1)
	}
}

func (g *Guest) task(n int) {
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	g.worked = true
	if g.place == nil {
		g.tasks += n
		return
	}
	s := g.door.sources[g.from]
	before := g.list(s)
	g.tasks += n
	if after := g.list(s); after != before {
		before.Remove(g.place)
		g.place = after.PushBack(g)
	}
}

// Worked says whether Work was ever called.
func (g *Guest) Worked() bool {
	if g == nil {
		return false
	}
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	return g.worked
}

// Source is what counts as one source: an IPv4 address, or an IPv6 /64, which is
// what one machine may choose from.
func Source(a net.Addr) netip.Prefix {
	ta, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := ta.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

package wan

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The path of a packet is
//
//	TUN of src > egress cap of src > link (rate, loss, delay) > ingress cap of dst > TUN of dst
//
// A single thread does it all. Egress cap and link are FIFO transmitters, so the
// time at which a packet leaves them follows from what they accepted before (see
// shaper), and a packet that is read from a TUN goes straight onto the wire of
// its link, stamped with the time at which it reaches the far end. When that time
// comes it passes the ingress cap in the same manner and is written to the TUN.
// No packet has a timer of its own.

const (
	quantum   = 200 * time.Microsecond // pause between turns while there is traffic
	budget    = 128                    // packets per site and turn, each way
	lateLimit = time.Millisecond       // deliveries later than this are counted

	// packetMemory bounds what all wires and queues hold together: 4 Gbit/s for a
	// second. Packets beyond it are counted as HostDrops.
	packetMemory = 512 << 20
)

// router moves packets between the sites.
type router struct {
	base    time.Time // when the router's clock was 0
	mtu     int
	next    int64      // when the next packet is due, set by turn
	mu      sync.Mutex // guards everything below and in sites and links
	free    *packet    // unused packets
	made    int        // packets made so far, in use or not
	spare   packet     // takes what there is no memory for
	sites   []*site
	links   []*link
	resetAt int64 // when the counters were zeroed
	used    usage // of processors until then
}

// newRouter builds sites and links, without their namespaces.
func newRouter(t Topo) (*router, error) {
	if t.MTU == 0 {
		t.MTU = defaultMTU
	}
	if t.MTU < minMTU || t.MTU > maxMTU {
		return nil, fmt.Errorf("mtu %d is outside %d..%d", t.MTU, minMTU, maxMTU)
	}
	if len(t.Sites) == 0 || len(t.Sites) > maxSites {
		return nil, fmt.Errorf("%d sites, want 1..%d", len(t.Sites), maxSites)
	}
	r := &router{base: time.Now(), mtu: t.MTU, spare: packet{buf: make([]byte, t.MTU)}}
	for i, spec := range t.Sites {
		switch {
		case !siteName.MatchString(spec.Name):
			return nil, fmt.Errorf("site %d: name %q: want up to 31 letters, digits, - and _, the first not - or _", i+1, spec.Name)
		case r.site(spec.Name) != nil:
			return nil, fmt.Errorf("site %d: there is another %q", i+1, spec.Name)
		case spec.Egress < 0 || spec.Ingress < 0 || spec.Queue < 0:
			return nil, fmt.Errorf("site %s: egress, ingress or queue is negative", spec.Name)
		}
		s := &site{index: i + 1}
		s.Site, s.Addr = spec, siteAddr(s.index)
		s.egress.set(spec.Egress, spec.Queue, siteSpan)
		s.ingress.set(spec.Ingress, spec.Queue, siteSpan)
		r.sites = append(r.sites, s)
	}
	if err := t.Default.check(); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	for _, src := range r.sites {
		for _, dst := range r.sites {
			if src == dst {
				continue
			}
			l := &link{LinkStatus: LinkStatus{From: src.Name, To: dst.Name}, src: src, dst: dst}
			if err := l.set(t.Default); err != nil {
				return nil, err
			}
			src.to[dst.index] = l
			dst.from = append(dst.from, l)
			r.links = append(r.links, l)
		}
	}
	for _, l := range t.Links {
		if err := r.change(l); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// siteAddr is the address of the site with an index.
func siteAddr(index int) string { return fmt.Sprintf("10.77.%d.1", index) }

// site returns the site of that name, nil if there is none.
func (r *router) site(name string) *site {
	for _, s := range r.sites {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// now is the router's clock in nanoseconds.
func (r *router) now() int64 { return int64(time.Since(r.base)) }

// get returns an unused packet, the spare one if memory is used up.
func (r *router) get() *packet {
	if p := r.free; p != nil {
		r.free = p.next
		return p
	}
	if (r.made+1)*r.mtu > packetMemory {
		return &r.spare
	}
	r.made++
	return &packet{buf: make([]byte, r.mtu)}
}

// put takes a packet back.
func (r *router) put(p *packet) {
	if p != &r.spare {
		p.next, r.free = r.free, p
	}
}

// run routes until something fails.
func (r *router) run() error {
	var tuns []unix.PollFd
	for _, s := range r.sites {
		tuns = append(tuns, unix.PollFd{Fd: int32(s.ns.tun), Events: unix.POLLIN})
	}
	// A wait that a signal has cut short is only a turn more; any other error
	// would make the thread spin.
	poll := func(fds []unix.PollFd, timeout *unix.Timespec) error {
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("ppoll: %w", err)
		}
		return nil
	}
	for yielded := int64(0); ; {
		most, err := r.turn()
		if err != nil {
			return err
		}
		now := r.now()
		if now-yielded > int64(5*time.Millisecond) {
			// If a goroutine has run for 10 ms, Go's scheduler disturbs its system calls.
			runtime.Gosched()
			yielded = now
		}
		pause := unix.NsecToTimespec(int64(quantum))
		wait := unix.NsecToTimespec(max(0, r.next-now))
		switch {
		case most == budget: // there is more
		case most > 0: // let some packets gather
			err = poll(nil, &pause)
		case r.next == never:
			err = poll(tuns, nil)
		default:
			err = poll(tuns, &wait)
		}
		if err != nil {
			return err
		}
	}
}

// turn delivers what is due, reads what the sites have sent, perhaps in answer,
// and sets r.next. It returns the largest number of packets moved at once.
func (r *router) turn() (most int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = never
	for _, s := range r.sites {
		most = max(most, r.deliver(s))
	}
	for _, s := range r.sites {
		n, err := r.read(s)
		if err != nil {
			return 0, fmt.Errorf("read %s of %s: %w", tunName, s.Name, err)
		}
		most = max(most, n)
	}
	return most, nil
}

// read puts what s has sent onto the wires and returns the number of packets.
func (r *router) read(s *site) (packets int, err error) {
	for ; packets < budget; packets++ {
		p := r.get()
		if p.n, err = unix.Read(s.ns.tun, p.buf); err != nil {
			r.put(p)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				return packets, nil
			}
			return packets, err
		}
		// After the read: with one time for all of a turn, packets sent meanwhile would
		// arrive too soon.
		now := r.now()
		p.link = nil
		if b := p.buf; p.n >= 20 && b[0]>>4 == 4 && b[16] == 10 && b[17] == 77 && b[18] <= maxSites {
			p.link = s.to[b[18]]
		}
		if p.link == nil { // not for another site
			r.put(p)
		} else if p == &r.spare {
			s.overflows++
		} else if dropped := p.link.admit(p, now); dropped != nil {
			*dropped++
			r.put(p)
		} else {
			p.link.wire.push(p)
			r.next = min(r.next, p.due)
		}
	}
	return packets, nil
}

// deliver writes what is due to s and returns the number of packets.
func (r *router) deliver(s *site) (packets int) {
	next := int64(never)
	for now := r.now(); ; next = never {
		var l *link // whose first packet is due first
		for _, from := range s.from {
			if due := from.wire.due(); due < next {
				l, next = from, due
			}
		}
		if next > now {
			break
		}
		p := l.wire.pop()
		due, ok := s.ingress.admit(p.due, p.n)
		if !ok {
			s.IngressDrops++
			r.put(p)
			continue
		}
		p.due = due
		s.out.push(p)
	}
	for ; packets < budget && s.out.due() <= r.now(); packets++ {
		p := s.out.pop()
		late := time.Duration(r.now() - p.due)
		s.LateMax = max(s.LateMax, Duration(late))
		if late > lateLimit {
			s.Late++
		}
		if _, err := unix.Write(s.ns.tun, p.buf[:p.n]); err != nil {
			s.IngressDrops++ // the device is down
		} else {
			s.IngressBytes += uint64(p.n)
			p.link.Packets++
			p.link.Bytes += uint64(p.n)
		}
		r.put(p)
	}
	r.next = min(r.next, next, s.out.due())
	return packets
}

// change sets one link.
func (r *router) change(c Link) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, b := r.site(c.A), r.site(c.B)
	if a == nil || b == nil || a == b {
		return fmt.Errorf("link: %q and %q are not two sites", c.A, c.B)
	}
	links := []*link{a.to[b.index], b.to[a.index]}
	if c.OneWay {
		links = links[:1]
	}
	for _, l := range links {
		if err := l.set(l.with(c.Change)); err != nil {
			return fmt.Errorf("link %s to %s: %w", l.From, l.To, err)
		}
		r.clear(l)
	}
	return nil
}

// isolate cuts a site off from all others.
func (r *router) isolate(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.site(name)
	if s == nil {
		return fmt.Errorf("isolate: there is no site %q", name)
	}
	s.Isolated = true
	for _, l := range r.links {
		r.clear(l)
	}
	return nil
}

// heal undoes isolate and takes up the links of a site, or of all sites if name
// is empty.
func (r *router) heal(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name != "" && r.site(name) == nil {
		return fmt.Errorf("heal: there is no site %q", name)
	}
	for _, s := range r.sites {
		if name == "" || name == s.Name {
			s.Isolated = false
		}
	}
	for _, l := range r.links {
		if name == "" || name == l.From || name == l.To {
			l.Down = false
		}
	}
	return nil
}

// clear drops what is on the wire of a link that is cut, or waits for it.
func (r *router) clear(l *link) {
	if !l.blocked() {
		return
	}
	for l.wire.head != nil {
		r.put(l.wire.pop())
		l.DropDown++
	}
	l.last, l.pipe.free = 0, 0
}

package door

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
)

type conn struct {
	addr   net.TCPAddr
	closed bool
}

func (c *conn) RemoteAddr() net.Addr { return &c.addr }
func (c *conn) Close() error         { c.closed = true; return nil }

func from(ip string) *conn {
	return &conn{addr: *net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))}
}

// TestDoor_CrowdTurnsItselfAway: one that comes from elsewhere is let in and
// stays, however many the crowd sends.
func TestDoor_CrowdTurnsItselfAway(t *testing.T) {
	out := 0
	d := New(10, 0, func() { out++ })
	var crowd []*conn
	for range 10 {
		crowd = append(crowd, from("192.0.2.1"))
		d.Enter(crowd[len(crowd)-1])
	}
	member := from("192.0.2.2")
	d.Enter(member)
	for range 100 {
		crowd = append(crowd, from("192.0.2.1"))
		d.Enter(crowd[len(crowd)-1])
	}
	open := slices.DeleteFunc(slices.Clone(crowd), func(c *conn) bool { return c.closed })
	if member.closed || len(open) != 9 || d.Len() != 10 || out != 101 {
		t.Fatalf("member out %v, %d of the crowd in, %d in all, %d turned away", member.closed, len(open), d.Len(), out)
	}
	if open[8] != crowd[len(crowd)-1] {
		t.Error("it is not those that came last who are in")
	}
}

func TestDoor_PerSource(t *testing.T) {
	d := New(100, 2, nil)
	first, second, third := from("2001:db8::1"), from("2001:db8::2"), from("2001:db8::3")
	for _, c := range []*conn{first, second, third} {
		d.Enter(c)
	}
	if !first.closed || second.closed || third.closed || d.Len() != 2 {
		t.Fatal(first.closed, second.closed, third.closed, d.Len())
	}
}

// TestDoor_WhoWorksStays: and when all do, who comes has to go.
func TestDoor_WhoWorksStays(t *testing.T) {
	out := 0
	d := New(2, 0, func() { out++ })
	a, b, c := from("192.0.2.1"), from("192.0.2.1"), from("192.0.2.1")
	ga := d.Enter(a)
	ga.Work()
	gb := d.Enter(b)
	gc := d.Enter(c)
	if a.closed || !b.closed || gb.Leave() {
		t.Fatal("it was not the one that waits who went")
	}
	gc.Work()
	if d.Enter(from("192.0.2.9")) != nil || c.closed || out != 2 {
		t.Fatal("somebody at work was turned away")
	}
	gb.Work() // it has gone: that changes nothing
	gb.Rest()
	ga.Work()
	ga.Rest()
	if d.Enter(from("192.0.2.9")) != nil {
		t.Fatal("one of two tasks is left")
	}
	ga.Rest()
	if d.Enter(from("192.0.2.9")) == nil || !a.closed || !ga.Worked() {
		t.Fatal("who rests is not turned away")
	}
}

// TestDoor_Counts: whatever happens in whatever order, the number is that of
// those who are in, and nothing is kept of those who left.
func TestDoor_Counts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	d := New(20, 5, nil)
	type guest struct {
		g *Guest
		c *conn
	}
	in := map[*guest]bool{}
	for range 20_000 {
		switch rng.IntN(4) {
		case 0, 1:
			c := from(netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(8))}).String())
			if g := d.Enter(c); g != nil {
				in[&guest{g, c}] = true
			}
		case 2:
			for x := range in {
				if x.g.Leave() == x.c.closed {
					t.Fatal("it left and was turned away, or neither")
				}
				delete(in, x)
				break
			}
		case 3:
			for x := range in {
				if rng.IntN(2) == 0 {
					x.g.Work()
				} else if x.g.tasks > 0 {
					x.g.Rest()
				}
				break
			}
		}
		for x := range in {
			if x.c.closed {
				delete(in, x)
			}
		}
		if d.Len() != len(in) || d.Len() > 20 {
			t.Fatalf("%d in, want %d", d.Len(), len(in))
		}
	}
	for x := range in {
		x.g.Leave()
	}
	if d.Len() != 0 || len(d.sources) != 0 {
		t.Fatalf("%d in and %d sources after all have left", d.Len(), len(d.sources))
	}
}

func TestSource(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3:1": "10.1.2.3/32", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "[::ffff:10.0.0.1]:1": "10.0.0.1/32",
	} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := Source(a).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if Source(&net.UnixAddr{}).IsValid() {
		t.Error("a source of no address")
	}
}

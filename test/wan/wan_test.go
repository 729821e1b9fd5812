package wan

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	for text, want := range map[string]Rate{"200mbit": 200 * Mbit, "1.5gbit": 1.5e9, "64kbit": 64 * Kbit, "9600bit": 9600, "unlimited": 0} {
		var r, again Rate
		if err := r.UnmarshalText([]byte(text)); err != nil || r != want {
			t.Errorf("%s: got %d, %v", text, r, err)
		}
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Errorf("%s: %s does not parse back: %d, %v", text, r, again, err)
		}
	}
	for _, text := range []string{"", "5", "mbit", "-1mbit", "0mbit", "nanmbit", "10mbyte", "1e99gbit"} {
		if err := new(Rate).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestShaper(t *testing.T) {
	var s shaper
	s.set(8*Mbit, 3000, time.Second) // 1 byte per microsecond
	const us = 1000
	for i, want := range []int64{1000 * us, 2000 * us, 3000 * us, 4000 * us} {
		if got, ok := s.admit(0, 1000); !ok || got != want {
			t.Errorf("packet %d leaves at %d, %t, want %d", i, got, ok, want)
		}
	}
	if _, ok := s.admit(0, 1000); ok {
		t.Error("a packet was admitted to a full queue")
	}
	if got, ok := s.admit(1500*us, 500); !ok || got != 4500*us {
		t.Errorf("after some have left: %d, %t", got, ok)
	}
	if got, ok := s.admit(9000*us, 1000); !ok || got != 10000*us {
		t.Errorf("idle link: %d, %t", got, ok)
	}
	if s.set(Gbit, 0, 40*time.Millisecond); s.queue != 5e6 {
		t.Errorf("default queue %d, want one rate x RTT", s.queue)
	}
	if s.set(Mbit, 0, 40*time.Millisecond); s.queue != minQueue {
		t.Errorf("default queue of a slow link %d, want %d", s.queue, minQueue)
	}
}

// TestLink_JitterKeepsOrder: each packet within rtt/2 and rtt/2 + jitter, or
// behind the one before.
func TestLink_JitterKeepsOrder(t *testing.T) {
	r, err := newRouter(Topo{Sites: []Site{{Name: "a"}, {Name: "b"}}, Default: Params{RTT: 10 * Millisecond, Jitter: 4 * Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	l := r.links[0]
	last, late := int64(0), 0
	for now := int64(0); now < int64(time.Second); now += int64(time.Millisecond) / 10 {
		p := &packet{n: 1000}
		if dropped := l.admit(p, now); dropped != nil {
			t.Fatal("dropped")
		}
		delay := time.Duration(p.due - now)
		if p.due < last || delay < 5*time.Millisecond || delay > 9*time.Millisecond {
			t.Fatalf("the packet of %s is due at %s, the one before at %s", time.Duration(now), time.Duration(p.due), time.Duration(last))
		}
		if last = p.due; delay > 6*time.Millisecond {
			late++
		}
	}
	if late == 0 {
		t.Error("there was no jitter")
	}
}

// TestRouter_CutLosesTheWire: also for packets that wait for the rate, and the
// link is as new afterwards.
func TestRouter_CutLosesTheWire(t *testing.T) {
	for name, cut := range map[string]func(*router) error{
		"down":              func(r *router) error { return r.change(Link{A: "a", B: "b", Change: Change{Down: new(true)}}) },
		"source isolated":   func(r *router) error { return r.isolate("a") },
		"receiver isolated": func(r *router) error { return r.isolate("b") },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := newRouter(Topo{Sites: []Site{{Name: "a"}, {Name: "b"}, {Name: "c"}}, Default: Params{RTT: 20 * Millisecond, Rate: 8 * Mbit}})
			if err != nil {
				t.Fatal(err)
			}
			ab, ac := r.site("a").to[2], r.site("a").to[3]
			if name == "source isolated" {
				ac = r.site("b").to[3]
			}
			for _, l := range []*link{ab, ac} {
				for range 5 {
					p := r.get()
					if p.n = 1000; l.admit(p, 0) != nil {
						t.Fatal("dropped")
					}
					l.wire.push(p)
				}
			}
			if err := cut(r); err != nil {
				t.Fatal(err)
			}
			if ab.DropDown != 5 || ab.wire.head != nil {
				t.Errorf("%d packets of the cut link are counted as lost, want 5", ab.DropDown)
			}
			if ac.DropDown != 0 || ac.wire.head == nil {
				t.Error("another link lost its packets")
			}
			if p := r.get(); ab.admit(p, 0) != &ab.DropDown {
				t.Error("a packet passes the cut link")
			}
			if err := r.heal(""); err != nil {
				t.Fatal(err)
			}
			p := r.get()
			if p.n = 1000; ab.admit(p, 0) != nil || p.due != int64(11*time.Millisecond) {
				t.Errorf("the first packet after the cut is due at %s, want 11 ms", time.Duration(p.due))
			}
		})
	}
}

// TestRouter_MemoryIsBounded: what has no room is the spare packet, again and
// again, and what is given back has room.
func TestRouter_MemoryIsBounded(t *testing.T) {
	r, err := newRouter(Topo{Sites: []Site{{Name: "a"}}, MTU: maxMTU})
	if err != nil {
		t.Fatal(err)
	}
	r.made = packetMemory/maxMTU - 1
	p := r.get()
	if p == &r.spare {
		t.Fatal("the last packet is refused")
	}
	for range 2 {
		if r.get() != &r.spare {
			t.Fatal("there are more packets than the bound")
		}
	}
	r.put(&r.spare)
	r.put(p)
	if r.get() != p || r.get() != &r.spare {
		t.Fatal("a packet that was given back is not used, or the spare one is")
	}
}

func TestTopo(t *testing.T) {
	const sites = `"sites":[{"name":"a"},{"name":"b"}]`
	for text, ok := range map[string]bool{
		`{` + sites + `,"default":{"rtt":"40ms","rate":"1gbit","loss":0.1}}`:    true,
		`{` + sites + `,"links":[{"a":"a","b":"b","rtt":"9ms","oneway":true}]}`: true,
		`{` + sites + `}{}`:                                           false,
		`{` + sites + `,"links":[{"a":"a","b":"c"}]}`:                 false,
		`{` + sites + `,"links":[{"a":"a","b":"a"}]}`:                 false,
		`{` + sites + `,"links":[{"a":"a","b":"b","speed":"1gbit"}]}`: false,
		`{` + sites + `,"links":[{"a":"a","b":"b","loss":-0.1}]}`:     false,
		`{` + sites + `,"default":{"loss":2}}`:                        false,
		`{` + sites + `,"default":{"rtt":"-1ms"}}`:                    false,
		`{` + sites + `,"default":{"rtt":"2m"}}`:                      false,
		`{` + sites + `,"default":{"jitter":"2m"}}`:                   false,
		`{` + sites + `,"default":{"queue":-1}}`:                      false,
		`{` + sites + `,"mtu":100}`:                                   false,
		`{` + sites + `,"mtu":65536}`:                                 false,
		`{"sites":[]}`:                                                false,
		`{"sites":[{"name":"a"},{"name":"a"}]}`:                       false,
		`{"sites":[{"name":""}]}`:                                     false,
		`{"sites":[{"name":"../a"}]}`:                                 false,
		`{"sites":[{"name":"-a"}]}`:                                   false,
		`{"sites":[{"name":"a b"}]}`:                                  false,
		`{"sites":[{"name":"` + strings.Repeat("a", 32) + `"}]}`:      false,
		`{"sites":[{"name":"a","egress":"-5mbit"}]}`:                  false,
		`{"sites":[` + strings.Repeat(`{"name":"a"},`, 300) + `{}]}`:  false,
	} {
		if _, err := ReadTopo(strings.NewReader(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, topo := range map[string]Topo{
		"negative egress": {Sites: []Site{{Name: "a", Egress: -1}}},
		"negative rate":   {Sites: []Site{{Name: "a"}}, Default: Params{Rate: -1}},
		"NaN loss":        {Sites: []Site{{Name: "a"}}, Default: Params{Loss: math.NaN()}},
	} {
		if topo.check() == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// TestTopo_Links applies them in order, to what was before, and in JSON as in Go.
func TestTopo_Links(t *testing.T) {
	topo := Topo{
		Sites:   []Site{{Name: "a", Egress: 200 * Mbit}, {Name: "b"}, {Name: "c"}},
		Default: Params{RTT: 40 * Millisecond, Rate: Gbit},
		Links: []Link{
			{A: "a", B: "b", Change: Change{RTT: new(90 * Millisecond), Loss: new(0.5), Jitter: new(2 * Millisecond)}},
			{A: "b", B: "a", OneWay: true, Change: Change{Rate: new(100 * Mbit), Loss: new(0.0), Queue: new(5), Down: new(true)}},
		},
	}
	text, err := json.Marshal(topo)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ReadTopo(strings.NewReader(string(text)))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for _, topo := range []Topo{topo, again} {
		r, err := newRouter(topo)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range r.links {
			want := topo.Default
			switch l.From + l.To {
			case "ab":
				want = Params{RTT: 90 * Millisecond, Jitter: 2 * Millisecond, Rate: Gbit, Loss: 0.5}
			case "ba":
				want = Params{RTT: 90 * Millisecond, Jitter: 2 * Millisecond, Rate: 100 * Mbit, Queue: 5, Down: true}
			}
			if l.Params != want {
				t.Errorf("%s to %s: %+v, want %+v", l.From, l.To, l.Params, want)
			}
		}
	}
}

func TestTopo_Example(t *testing.T) {
	f, err := os.Open("wanlab/example.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	topo, err := ReadTopo(f)
	if err != nil || !slices.ContainsFunc(topo.Sites, func(s Site) bool { return s.Name == "sgp" }) {
		t.Errorf("%+v, %v", topo, err)
	}
}

func TestStats_Trustworthy(t *testing.T) {
	good := func() Stats {
		return Stats{MachineCPU: 0.74, Sites: []SiteStatus{
			{Site: Site{Name: "a"}}, {Site: Site{Name: "b"}, SiteCounters: SiteCounters{Late: 3, IngressDrops: 7}},
		}, Links: []LinkStatus{{LinkCounters: LinkCounters{Packets: 60, DropLoss: 9}}, {LinkCounters: LinkCounters{Packets: 40}}}}
	}
	for says, spoil := range map[string]func(*Stats){
		"":                     func(*Stats) {},
		"lost 1 packets of a":  func(s *Stats) { s.Sites[0].HostDrops = 1 },
		"4.0 % of 100 packets": func(s *Stats) { s.Sites[0].Late = 1 },
		"76 % busy":            func(s *Stats) { s.MachineCPU = 0.76 },
		"100.0 %": func(s *Stats) {
			s.Sites[0].Late, s.Links = 97, s.Links[:0]
			s.Links = append(s.Links, LinkStatus{LinkCounters: LinkCounters{Packets: 100}})
		},
	} {
		s := good()
		spoil(&s)
		err := s.Trustworthy()
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
	s := good()
	s.Sites[1].HostDrops, s.MachineCPU = 2, 1
	if err := s.Trustworthy(); err == nil || !strings.Contains(err.Error(), "of b") || !strings.Contains(err.Error(), "100 % busy") {
		t.Errorf("not every reason is named: %v", err)
	}
}

func TestMachineTicks(t *testing.T) {
	busy, total, err := machineTicks([]byte("cpu  100 20 3 4000 500 6 7 80 90 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if err != nil || busy != 216 || total != 4716 {
		t.Errorf("busy %d of %d, %v, want 216 of 4716", busy, total, err)
	}
	for _, bad := range []string{"", "intr 1 2 3 4 5 6 7 8 9", "cpu 1 2 3", "cpu a 2 3 4 5 6 7 8"} {
		if _, _, err := machineTicks([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestSendDrops(t *testing.T) {
	const dev = "Inter-|   Receive                            |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"    lo:     1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16\n" +
		"  wan0:     1       2    3    4    5     6          7         8        9      10   11   42   13    14      15         16\n"
	if n, err := sendDrops([]byte(dev)); n != 42 || err != nil {
		t.Errorf("%d, %v, want 42", n, err)
	}
	for _, bad := range []string{"", "lo: 1 2", "wan0: 1 2 3", strings.ReplaceAll(dev, "42", "x")} {
		if _, err := sendDrops([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

package node

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/node/preflight"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/test/bucket"
	"github.com/portolan/portolan/test/smalldisk"
)

// behindGates starts a mesh whose nodes are reached through gates alone.
func behindGates(t *testing.T, sites ...string) ([]*machine, []*gates) {
	t.Helper()
	var all []*machine
	var doors []*gates
	for i, site := range sites {
		m, host := newMachine(t), "127.0.0."+strconv.Itoa(i+2)
		advertise := []string{"--advertise", host, "--registry-url", "http://" + net.JoinHostPort(host, strconv.Itoa(m.ports[0]))}
		doors = append(doors, openGates(t, m, host))
		if i == 0 {
			m.start(append(advertise, "--site", site)...)
		} else {
			m.join(all[0].token(site), advertise...)
			m.start(advertise...)
		}
		all = append(all, m)
	}
	for _, m := range all {
		m.await("all sites are alive", func() error {
			s, err := m.status()
			if err != nil {
				return err
			}
			alive := 0
			for _, x := range s.Sites {
				if x.Nodes[0].Alive {
					alive++
				}
			}
			if alive != len(sites) {
				return fmt.Errorf("%d of %d", alive, len(sites))
			}
			return nil
		})
	}
	return all, doors
}

// pathTests is what a check came to.
type pathTests struct{ mesh.SiteCheck }

func (m *machine) check(site string) pathTests {
	m.t.Helper()
	b, err := m.do(http.MethodPost, mesh.Prefix+"/sites/"+site+"/check", nil)
	var out pathTests
	if err == nil {
		err = json.Unmarshal(b, &out.SiteCheck)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// wrong gives what did not pass, as "test from>to result".
func wrong(c pathTests) map[string]mesh.PathTest {
	out := map[string]mesh.PathTest{}
	for _, x := range c.Tests {
		if x.Result != string(preflight.OK) {
			out[fmt.Sprintf("%s %s>%s %s", x.Test, x.From, x.To, x.Result)] = x
		}
	}
	return out
}

// TestCheck_SaysWhichPortAndWhichWay: one thing at a time is broken on the way
// between two nodes, and that is what the check names, and nothing else.
func TestCheck_SaysWhichPortAndWhichWay(t *testing.T) {
	all, doors := behindGates(t, "ams", "fra")
	ams, fra := all[0], all[1]
	const registry, gossip, control, data = 0, 1, 2, 3
	none := func() {}
	shut := func(g *gates, m *machine, port int) (func(), func()) {
		return func() { g.shut(m.ports[port]) }, func() { g.open(m.ports[port]) }
	}
	type broken struct {
		name     string
		breaking func()
		mending  func()
		want     []string
		advice   string // in that of the first
	}
	cases := []broken{{name: "nothing", breaking: none, mending: none}}
	for _, side := range []struct {
		at       string
		from, to string
		g        *gates
		m        *machine
	}{{"there", "ams", "fra", doors[1], fra}, {"back", "fra", "ams", doors[0], ams}} {
		way := " " + side.from + ">" + side.to + " failed"
		for _, c := range []struct {
			port int
			want []string
		}{
			{registry, []string{"registry" + way}},
			{gossip, []string{"gossip tcp" + way}},
			{control, []string{"control port" + way, "raft" + way}},
			{data, []string{"data port" + way}},
		} {
			b, m := shut(side.g, side.m, c.port)
			want := c.want
			if c.port == control && side.at == "there" {
				want = append(want, "answer ams>fra warning") // it had to be asked another way
			}
			cases = append(cases, broken{"port " + strconv.Itoa(side.m.ports[c.port]) + " " + side.at, b, m, want, "nothing listens there"})
		}
		cases = append(cases,
			broken{"packets " + side.at, func() { side.g.setPackets(false, 0) }, func() { side.g.setPackets(true, 0) }, []string{"gossip udp" + way}, "UDP port " + strconv.Itoa(side.m.ports[gossip])},
			broken{"full packets " + side.at, func() { side.g.setPackets(true, 1200) }, func() { side.g.setPackets(true, 0) }, []string{"gossip udp" + way}, "MTU"})
	}
	cases = append(cases,
		broken{"a clock that is 5 s ahead", func() { fra.ahead.Store(int64(5 * time.Second)) }, func() { fra.ahead.Store(0) }, []string{"clock ams>fra warning"}, "NTP"},
		broken{"a clock that is 90 s behind", func() { fra.ahead.Store(int64(-90 * time.Second)) }, func() { fra.ahead.Store(0) }, []string{"clock ams>fra failed"}, "refused"},
		broken{"a pause", func() { ams.setPause("fra", http.MethodPut) }, func() { ams.setPause("fra", http.MethodDelete) }, []string{"pause ams>fra failed"}, "portolan transfer resume fra"},
		broken{"a pause of the asking site", func() { ams.setPause("ams", http.MethodPut) }, func() { ams.setPause("ams", http.MethodDelete) }, []string{"pause fra>ams failed"}, "portolan transfer resume ams"})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.breaking()
			got := ams.check("fra")
			c.mending()
			bad := wrong(got)
			failing := false
			for i, name := range c.want {
				x, ok := bad[name]
				if !ok {
					t.Errorf("%s is not said", name)
				}
				if i == 0 && !strings.Contains(x.Advice, c.advice) {
					t.Errorf("%s: the advice is %q, want %q in it", name, x.Advice, c.advice)
				}
				failing = failing || strings.HasSuffix(name, "failed")
				delete(bad, name)
			}
			for name, x := range bad {
				t.Errorf("%s is said as well: %+v", name, x)
			}
			if got.Passed == failing {
				t.Errorf("passed: %v", got.Passed)
			}
			if len(got.Tests) < 19 || got.From != "ams" || got.To != "fra" {
				t.Errorf("%+v", got)
			}
		})
	}
	t.Run("what is measured", func(t *testing.T) {
		for _, x := range ams.check("fra").Tests {
			if (x.Test == preflight.TestThroughput || x.Test == preflight.TestSpace || x.Test == preflight.TestRoundTrip) && x.Value <= 0 {
				t.Errorf("%+v", x)
			}
		}
	})
	t.Run("a budget holds", func(t *testing.T) {
		const mbit = 8
		if _, err := ams.do(http.MethodPut, mesh.Prefix+"/budgets", mesh.BudgetRequest{From: "ams", To: "fra", Mbit: mbit}); err != nil {
			t.Fatal(err)
		}
		for _, x := range ams.check("fra").Tests {
			if x.Test == preflight.TestThroughput && x.From == "ams" && (x.Result != "ok" || x.Value <= 0 || x.Value > 1.05*mbit || !strings.Contains(x.Detail, "cap of 8 Mbit/s")) {
				t.Errorf("%+v", x)
			}
		}
	})
}

func (m *machine) setPause(site, method string) {
	m.t.Helper()
	if _, err := m.do(method, mesh.Prefix+"/transfers/paused/"+site, nil); err != nil {
		m.t.Fatal(err)
	}
}

// TestCheck_AnotherKey: where the address of a node leads to another one the check
// says so, and does not take it for the node.
func TestCheck_AnotherKey(t *testing.T) {
	all, doors := behindGates(t, "ams", "fra", "sgp")
	ams, fra, sgp := all[0], all[1], all[2]
	for _, c := range []struct {
		name string
		port int
		want []string
	}{
		{"control port", 2, []string{"control port ams>fra failed", "raft ams>fra failed", "answer ams>fra warning"}},
		{"data port", 3, []string{"data port ams>fra failed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			doors[1].lead(fra.ports[c.port], sgp.ports[c.port])
			got := ams.check("fra")
			doors[1].lead(fra.ports[c.port], 0)
			bad := wrong(got)
			if x := bad["key ams>fra failed"]; !strings.Contains(x.Detail, "another key") || !strings.Contains(x.Advice, "correct the address of fra (--advertise)") {
				t.Errorf("the key: %+v", x)
			}
			if x := bad[c.want[0]]; !strings.Contains(x.Advice, "another machine answers there") {
				t.Errorf("%s: %+v", c.want[0], x)
			}
			for _, name := range append(c.want, "key ams>fra failed") {
				if _, ok := bad[name]; !ok {
					t.Errorf("%s is not said", name)
				}
				delete(bad, name)
			}
			if len(bad) > 0 || got.Passed {
				t.Errorf("passed: %v; said as well: %+v", got.Passed, bad)
			}
		})
	}
}

// TestCheck_NobodyReachesIt: what could not be tried is unknown, and not well.
func TestCheck_NobodyReachesIt(t *testing.T) {
	all, doors := behindGates(t, "ams", "fra", "sgp")
	ams, fra := all[0], all[1]
	for _, x := range []struct {
		g    *gates
		port int
	}{{doors[1], fra.ports[2]}, {doors[1], fra.ports[3]}, {doors[0], ams.ports[3]}} {
		x.g.shut(x.port)
		x.g.cut(x.port)
	}
	got := ams.check("fra")
	bad := wrong(got)
	if got.Passed || len(bad) == 0 {
		t.Fatalf("%+v", got)
	}
	if x, ok := bad["answer ams>fra failed"]; !ok || !strings.Contains(x.Advice, "portolan site check ams --server") {
		t.Errorf("nobody reaches fra, and: %+v", bad)
	}
	for _, name := range []string{"data port fra>ams unknown", "control port fra>ams unknown", "gossip udp ams>fra unknown", "clock ams>fra unknown", "throughput ams>fra failed"} {
		if _, ok := bad[name]; !ok {
			t.Errorf("%s is not said", name)
		}
	}
}

// TestCheck_FullDisk: a disk with no room for blobs is found before anything is
// brought to it.
func TestCheck_FullDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "256m")
	a, b := newMachine(t), newMachine(t)
	t.Cleanup(func() {
		if b.stop != nil {
			b.mustStop()
		}
	})
	b.dir = filepath.Join(disk, "data")
	a.start("--site", "ams")
	b.join(a.token("fra"))
	b.start()
	space := func() mesh.PathTest { return a.check("fra").test(preflight.TestSpace) }
	if x := space(); x.Result != "warning" || x.Value <= 0 {
		t.Errorf("a disk of 256 MiB: %+v", x)
	}
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 170<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if x := space(); x.Result != "failed" || !strings.Contains(x.Advice, "free space on the disk of fra") {
		t.Errorf("a full disk: %+v", x)
	}
	a.awaitStore("fra", "failed", "free space on the disk of fra")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if x := space(); x.Result != "warning" {
		t.Errorf("a disk with space again: %+v", x)
	}
	a.awaitStore("fra", "ok", "")
}

// test gives one that is made once for a path.
func (c pathTests) test(name string) (found mesh.PathTest) {
	for _, x := range c.Tests {
		if x.Test == name {
			found = x
		}
	}
	return found
}

// awaitStore checks until the store's line is as it should be: a store that was
// tried within a second is not tried again.
func (m *machine) awaitStore(site, result, advice string) {
	m.t.Helper()
	m.await("the store of "+site+" is found "+result, func() error {
		c := m.check(site)
		if x := c.test(preflight.TestStore); x.Result != result || !strings.Contains(x.Advice, advice) || c.Passed && result == "failed" {
			return fmt.Errorf("passed: %v; %+v", c.Passed, x)
		}
		return nil
	})
}

// TestCheck_Bucket: a bucket that takes nothing any more is found before anything is
// brought to it.
func TestCheck_Bucket(t *testing.T) {
	server := bucket.Start(t)
	a, b := newMachine(t), newMachine(t)
	b.start(append(onBucket(server), "--site", "fra")...)
	a.join(b.token("ams"))
	a.start()
	a.awaitStore("fra", "ok", "")
	server.OnRequest(func(string, int, *http.Request) int { return http.StatusForbidden })
	a.awaitStore("fra", "failed", "--store-parameters")
	if x := a.check("fra").test(preflight.TestStore); !strings.Contains(x.Detail, `S3 bucket "layers"`) || strings.Contains(x.Detail, "a-secret-of-the-tests") {
		t.Errorf("%+v", x)
	}
	server.OnRequest(func(string, int, *http.Request) int { return http.StatusServiceUnavailable })
	a.awaitStore("fra", "failed", "see that the bucket of fra does its work")
	server.OnRequest(nil)
	a.awaitStore("fra", "ok", "")
}

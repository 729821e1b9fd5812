package mesh

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

// checked is the answer of `portolan site check --json`.
type checked struct {
	From, To string
	Passed   bool
	Tests    []struct {
		Test, From, To, Result, Detail, Advice string
		Value                                  float64
	}
}

// result gives one test's, "" if it was not made.
func (c checked) result(test, from, to string) string {
	for _, x := range c.Tests {
		if x.Test == test && x.From == from && x.To == to {
			return x.Result
		}
	}
	return ""
}

func (f *farSite) check(t *testing.T, site string) (c checked, code int) {
	t.Helper()
	r := f.cli(t, "site", "check", site, "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil {
		t.Fatalf("site check --json: %v: %s%s", err, r.Stdout, r.Stderr)
	}
	return c, r.Code
}

// TestSiteCheck_WAN: processes, with a delay between them that is measured; a
// link that loses what goes one way, and one that is cut, where a third site
// passes the question on.
func TestSiteCheck_WAN(t *testing.T) {
	const rtt = 40
	lab := wan.Start(t, wan.Topo{
		Sites:   []wan.Site{{Name: "fra", Egress: 50 * wan.Mbit}, {Name: "nyc"}, {Name: "sgp"}},
		Default: wan.Params{RTT: rtt * wan.Millisecond},
	})
	fra := startFar(t, lab, "fra", "serve", "--site", "fra")
	for _, site := range []string{"nyc", "sgp"} {
		made := fra.cli(t, "token", "create", "--site", site, "--json")
		var token struct{ Token string }
		if err := json.Unmarshal([]byte(made.Stdout), &token); err != nil || token.Token == "" {
			t.Fatalf("token create --json: %v: %s%s", err, made.Stdout, made.Stderr)
		}
		startFar(t, lab, site, "join", token.Token)
	}
	var c checked
	cluster.Eventually(t, cluster.Patience, "the path is well", func() error {
		var code int
		if c, code = fra.check(t, "sgp"); code != 0 || !c.Passed {
			return fmt.Errorf("exit code %d: %+v", code, c)
		}
		return nil
	})
	for _, x := range c.Tests {
		switch {
		case x.Test == "round trip" && x.Value < rtt:
			t.Errorf("a round trip of %v ms over a link of %d: %+v", x.Value, rtt, x)
		case x.Test == "throughput" && x.From == "fra" && (x.Value <= 0 || x.Value > 50):
			t.Errorf("%v Mbit/s over a link of 50: %+v", x.Value, x)
		}
	}

	// What fra sends is lost, and what sgp sends arrives: the packets tell.
	down, up := true, false
	lab.LinkOneWay("fra", "sgp", wan.Change{Down: &down})
	c, code := fra.check(t, "sgp")
	if code == 0 || c.Passed {
		t.Errorf("a link that loses all one way passed: %+v", c)
	}
	for _, want := range []struct{ test, from, to, result string }{
		{"gossip udp", "fra", "sgp", "failed"}, {"gossip udp", "sgp", "fra", "ok"},
		{"control port", "fra", "sgp", "failed"}, {"control port", "sgp", "fra", "failed"}, // TCP needs both
		{"data port", "fra", "sgp", "failed"}, {"data port", "sgp", "fra", "failed"},
		{"throughput", "fra", "sgp", "failed"}, {"answer", "fra", "sgp", "warning"}, {"clock", "fra", "sgp", "ok"}, {"space", "fra", "sgp", "ok"},
	} {
		if got := c.result(want.test, want.from, want.to); got != want.result {
			t.Errorf("one way lost: %s from %s to %s is %q, want %q", want.test, want.from, want.to, got, want.result)
		}
	}
	for _, x := range c.Tests {
		if x.Test == "answer" && !strings.Contains(x.Detail, "asked by way of site nyc") {
			t.Errorf("%+v", x)
		}
	}
	text := fra.cli(t, "site", "check", "sgp")
	if text.Code != 1 || !strings.Contains(text.Stderr, "tests of the path between fra and sgp did not pass") ||
		!strings.Contains(text.Stdout, "to do:") || !strings.Contains(text.Stdout, "open UDP port 7946 (--gossip-port) of sgp for fra") {
		t.Errorf("exit code %d\n%s%s", text.Code, text.Stdout, text.Stderr)
	}
	lab.LinkOneWay("fra", "sgp", wan.Change{Down: &up})
	cluster.Eventually(t, cluster.Patience, "the link is well again", func() error {
		if c, code := fra.check(t, "sgp"); code != 0 {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if r := fra.cli(t, "site", "check", "fra"); r.Code != 1 || !strings.Contains(r.Stderr, "no node but the one that answers") {
		t.Errorf("its own site: %d %s", r.Code, r.Stderr)
	}
	if r := fra.cli(t, "site", "check", "mars"); r.Code != 1 || !strings.Contains(r.Stderr, `there is no site "mars"`) {
		t.Errorf("no site: %d %s", r.Code, r.Stderr)
	}
}

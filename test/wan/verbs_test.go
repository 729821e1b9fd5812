package wan

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestVerbs drives a lab by the command, as people do.
func TestVerbs(t *testing.T) {
	l := start(t, Topo{Sites: sites("fra", "sgp"), Default: Params{RTT: 2 * Millisecond}})
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), binary(t), args...)
		cmd.Env = append(os.Environ(), "WANLAB="+l.Name())
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("wanlab %v: %v\n%s", args, err, out)
		}
		return out
	}
	stats := func(args ...string) (st Stats) {
		t.Helper()
		if err := json.Unmarshal([]byte(must(append([]string{"stats", "--json"}, args...)...)), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}

	must("link", "fra", "sgp", "--rtt", "80ms", "--jitter", "1ms", "--rate", "100mbit", "--queue", "70000", "--loss", "0.25")
	must("link", "sgp", "fra", "--oneway", "--down", "--loss", "0")
	want := Params{RTT: 80 * Millisecond, Jitter: Millisecond, Rate: 100 * Mbit, Queue: 70000, Loss: 0.25}
	if got := stats().Link("fra", "sgp").Params; got != want {
		t.Errorf("fra to sgp is %+v, want %+v", got, want)
	}
	want.Down, want.Loss = true, 0
	if got := stats().Link("sgp", "fra").Params; got != want {
		t.Errorf("sgp to fra is %+v, want %+v", got, want)
	}
	must("link", "sgp", "fra", "--up", "--rate", "unlimited")
	if got := stats().Link("sgp", "fra"); got.Down || got.Rate != 0 {
		t.Errorf("sgp to fra is %+v", got)
	}
	must("isolate", "fra")
	if st := stats(); !st.Site("fra").Isolated || st.Site("sgp").Isolated {
		t.Errorf("%+v", st.Sites)
	}
	must("heal")
	if stats().Site("fra").Isolated {
		t.Error("fra is not healed")
	}

	must("link", "fra", "sgp", "--loss", "0", "--jitter", "0s")
	probe(t, dial(t, l, "fra", "udp", echo(t, l, "sgp")))
	if table := must("stats", "--reset"); !strings.Contains(table, "fra>sgp") || !strings.Contains(table, "1000") {
		t.Errorf("%s", table)
	}
	if got := stats().Link("fra", "sgp"); got.Packets != 0 {
		t.Errorf("not reset: %+v", got)
	}
	if out := must("exec", "sgp", "--", "cat", "/proc/net/dev"); !strings.Contains(out, tunName) {
		t.Errorf("%s", out)
	}

	for _, args := range [][]string{
		{}, {"fly"}, {"link", "fra", "sgp"}, {"link", "fra", "sgp", "--loss", "x"}, {"link", "fra", "sgp", "--rtt", "5"},
		{"link", "fra", "sgp", "--loss", "2"}, {"link", "fra", "nowhere", "--down"}, {"isolate"}, {"isolate", "nowhere"},
		{"heal", "fra", "sgp"}, {"stats", "x"}, {"exec", "nowhere", "--", "true"}, {"exec", "fra", "true"},
		{"down"}, {"up", "-f", "no-such-file"},
	} {
		out, err := run(args...)
		if err == nil || out == "" {
			t.Errorf("wanlab %v: %v, %q; want an error that says why", args, err, out)
		}
	}
	if left := leftovers(l.Name()); len(left) != 4 {
		t.Errorf("of the lab that is up there is %v", left)
	}
	if out, err := run("exec", "fra", "--", "sh", "-c", "exit 3"); err == nil || !strings.Contains(fmt.Sprint(err), "3") {
		t.Errorf("exit 3 gives %v: %s", err, out)
	}
}

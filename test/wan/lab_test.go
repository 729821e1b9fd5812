package wan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/test/cluster"
)

// These tests hold on a busy machine: they count, and bound times from below and
// rates from above only.

// start is Start, but not in the quick loop of `make check`.
func start(t *testing.T, topo Topo) *Lab {
	t.Helper()
	if testing.Short() {
		t.Skip("labs are not started with -short")
	}
	return Start(t, topo)
}

func sites(names ...string) (s []Site) {
	for _, n := range names {
		s = append(s, Site{Name: n})
	}
	return s
}

// echo answers each UDP packet that comes to a site and gives the address.
func echo(t *testing.T, l *Lab, site string) string {
	t.Helper()
	c := l.ListenPacket(site)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
	return c.LocalAddr().String()
}

// dial connects from a site; an answer that doesn't come fails the test.
func dial(t *testing.T, l *Lab, site, network, addr string) net.Conn {
	t.Helper()
	c, err := l.Dialer(site)(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(cluster.Patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// probe sends one packet of 1000 bytes, waits for the answer and gives the time
// between.
func probe(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	buf := make([]byte, 1000-28) // headers of IP and UDP
	began := time.Now()
	if _, err := c.Write(buf); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(buf); err != nil || n != len(buf) {
		t.Fatalf("answer of %d bytes, %v", n, err)
	}
	return time.Since(began)
}

// await waits until the counters are as check wants them.
func await(t *testing.T, l *Lab, what string, check func(Stats) bool) (st Stats) {
	t.Helper()
	cluster.Eventually(t, cluster.Patience, what, func() error {
		if st = l.Stats(false); !check(st) {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	return st
}

func TestLab_CountsEveryPacket(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b", "c")})
	c := dial(t, l, "a", "udp", echo(t, l, "b"))
	l.Stats(true)
	for range 10 {
		probe(t, c)
	}
	st := l.Stats(true)
	for _, k := range []LinkStatus{st.Link("a", "b"), st.Link("b", "a")} {
		if k.LinkCounters != (LinkCounters{Packets: 10, Bytes: 10000}) {
			t.Errorf("%s to %s: %+v, want 10 packets, 10000 bytes, nothing dropped", k.From, k.To, k)
		}
	}
	for _, name := range []string{"a", "b"} {
		if s := st.Site(name); s.EgressBytes != 10000 || s.IngressBytes != 10000 || s.Addr != l.Addr(name) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s := st.Site("c"); s.EgressBytes != 0 || s.IngressBytes != 0 {
		t.Errorf("c: %+v", s)
	}
	if st.Seconds <= 0 || st.CPUSeconds <= 0 || st.MachineCPU < 0 || st.MachineCPU > 1 {
		t.Errorf("%v s, router %v s, machine %v", st.Seconds, st.CPUSeconds, st.MachineCPU)
	}
	if st = l.Stats(false); st.Site("a").EgressBytes != 0 || st.Link("a", "b").Packets != 0 {
		t.Errorf("not reset: %+v", st)
	}
}

func TestLab_DelayIsAtLeastWhatIsSet(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b", "c"), Default: Params{RTT: 40 * Millisecond},
		Links: []Link{{A: "a", B: "c", Change: Change{RTT: new(10 * Millisecond)}}}})
	toB, toC := dial(t, l, "a", "udp", echo(t, l, "b")), dial(t, l, "a", "udp", echo(t, l, "c"))
	check := func(c net.Conn, least time.Duration) {
		t.Helper()
		if rtt := probe(t, c); rtt < least {
			t.Errorf("an answer came after %s, sooner than %s", rtt, least)
		}
	}
	check(toB, 40*time.Millisecond)
	check(toC, 10*time.Millisecond)
	l.Link("a", "c", Change{RTT: new(60 * Millisecond)})
	check(toC, 60*time.Millisecond)
	l.LinkOneWay("a", "c", Change{RTT: new(20 * Millisecond)})
	check(toC, 40*time.Millisecond)
	if st := l.Stats(false); st.Link("a", "c").RTT != 20*Millisecond || st.Link("c", "a").RTT != 60*Millisecond || st.Link("a", "b").RTT != 40*Millisecond {
		t.Errorf("%+v", st.Links)
	}
}

func TestLab_LossIsCounted(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b")})
	c := dial(t, l, "a", "udp", l.ListenPacket("b").LocalAddr().String())
	l.LinkOneWay("a", "b", Change{Loss: new(0.5)})
	const packets = 400
	for range packets {
		if _, err := c.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	st := await(t, l, "every packet is delivered or lost", func(st Stats) bool {
		k := st.Link("a", "b")
		return k.Packets+k.DropLoss+st.Site("a").HostDrops == packets
	})
	// 7 standard deviations.
	if k := st.Link("a", "b"); k.DropLoss < 130 || k.DropLoss > 270 || k.Bytes != 128*k.Packets {
		t.Errorf("with half of them lost: %+v", k)
	}
	if k := st.Link("b", "a"); k.LinkCounters != (LinkCounters{}) {
		t.Errorf("the other direction: %+v", k)
	}
}

func TestLab_CutLinksDrop(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b", "c")})
	toB, toC := dial(t, l, "a", "udp", echo(t, l, "b")), dial(t, l, "a", "udp", echo(t, l, "c"))
	lost := func(c net.Conn, to string) {
		t.Helper()
		l.Stats(true)
		for range 3 {
			if _, err := c.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		st := await(t, l, "the packets are lost", func(st Stats) bool { return st.Link("a", to).DropDown == 3 })
		if k := st.Link("a", to); k.Packets != 0 {
			t.Errorf("of the packets to %s %d came through", to, k.Packets)
		}
	}
	probe(t, toB)
	l.Link("a", "b", Change{Down: new(true)})
	lost(toB, "b")
	probe(t, toC)
	l.Link("a", "b", Change{Down: new(false)})
	probe(t, toB)

	l.Isolate("a")
	if st := l.Stats(false); !st.Site("a").Isolated || st.Site("b").Isolated {
		t.Errorf("%+v", st.Sites)
	}
	lost(toB, "b")
	lost(toC, "c")
	l.Heal("a")
	probe(t, toB)
	probe(t, toC)

	l.Link("a", "b", Change{Down: new(true)})
	l.Isolate("c")
	l.Heal()
	probe(t, toB)
	probe(t, toC)
}

// send brings bytes from one site to another over TCP.
func send(ctx context.Context, l *Lab, from string, to net.Listener, bytes int64) error {
	out, err := l.Dialer(from)(ctx, "tcp", to.Addr().String())
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := to.Accept()
	if err != nil {
		return err
	}
	defer in.Close()
	deadline := time.Now().Add(cluster.Patience)
	if err := errors.Join(out.SetDeadline(deadline), in.SetDeadline(deadline)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(out, zeros{}, bytes)
		sent <- err
	}()
	_, err = io.CopyN(io.Discard, in, bytes)
	return errors.Join(err, <-sent)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestLab_RatesAreNeverExceeded: of a link, and of a site's caps over two links.
func TestLab_RatesAreNeverExceeded(t *testing.T) {
	l := start(t, Topo{
		Sites:   []Site{{Name: "a"}, {Name: "b"}, {Name: "up", Egress: 30 * Mbit}, {Name: "down", Ingress: 30 * Mbit}},
		Default: Params{RTT: 4 * Millisecond},
		Links:   []Link{{A: "a", B: "b", Change: Change{Rate: new(20 * Mbit)}}},
	})
	const bytes = 1 << 20
	for _, c := range []struct {
		name  string
		rate  Rate
		flows [][2]string
	}{
		{"link", 20 * Mbit, [][2]string{{"a", "b"}}},
		{"egress", 30 * Mbit, [][2]string{{"up", "a"}, {"up", "b"}}},
		{"ingress", 30 * Mbit, [][2]string{{"a", "down"}, {"b", "down"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.Stats(true)
			var all sync.WaitGroup
			errs := make([]error, len(c.flows))
			var listeners []net.Listener
			for _, f := range c.flows {
				listeners = append(listeners, l.Listen(f[1]))
			}
			began := time.Now()
			for i, f := range c.flows {
				all.Go(func() { errs[i] = send(t.Context(), l, f[0], listeners[i], bytes) })
			}
			all.Wait()
			took := time.Since(began)
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			least := time.Duration(float64(len(c.flows)) * bytes * 8 / float64(c.rate) * float64(time.Second))
			if took < least {
				t.Errorf("%d x %d bytes took %s, at %s they take %s", len(c.flows), int64(bytes), took, c.rate, least)
			}
			st := l.Stats(false)
			for _, f := range c.flows {
				if k := st.Link(f[0], f[1]); k.Bytes < bytes {
					t.Errorf("%s to %s: %d bytes are counted of %d", k.From, k.To, k.Bytes, int64(bytes))
				}
			}
		})
	}
}

// TestLab_QueueOverflows: what does not fit is dropped and counted, by who
// dropped it.
func TestLab_QueueOverflows(t *testing.T) {
	l := start(t, Topo{
		Sites:   []Site{{Name: "a"}, {Name: "b"}, {Name: "up", Egress: 64 * Kbit, Queue: 5000}, {Name: "down", Ingress: 64 * Kbit, Queue: 5000}},
		Default: Params{Rate: 0},
		Links:   []Link{{A: "a", B: "b", Change: Change{Rate: new(64 * Kbit), Queue: new(5000)}}},
	})
	for _, c := range []struct {
		from, to string
		drops    func(Stats) uint64
	}{
		{"a", "b", func(st Stats) uint64 { return st.Link("a", "b").DropQueue }},
		{"up", "a", func(st Stats) uint64 { return st.Site("up").EgressDrops }},
		{"a", "down", func(st Stats) uint64 { return st.Site("down").IngressDrops }},
	} {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			conn := dial(t, l, c.from, "udp", l.ListenPacket(c.to).LocalAddr().String())
			l.Stats(true)
			const packets = 50
			for range packets {
				if _, err := conn.Write(make([]byte, 1000-28)); err != nil {
					t.Fatal(err)
				}
			}
			st := await(t, l, "every packet is delivered or dropped", func(st Stats) bool {
				return c.drops(st)+st.Link(c.from, c.to).Packets == packets
			})
			// 6 fit at once; each later one may have used the time of a slow sender.
			if n := c.drops(st); n == 0 || n > packets-6 {
				t.Errorf("%d of %d packets were dropped at a queue of 5", n, packets)
			}
		})
	}
}

// cat starts a process in a site that runs until end is called.
func cat(t *testing.T, l *Lab, site string) (end func() (pid int)) {
	t.Helper()
	cmd := l.Command(t.Context(), site, "cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, cluster.Patience, "the pid is that of the program itself", func() error {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		if err == nil && string(name) != "cat\n" {
			err = fmt.Errorf("it is %s", name)
		}
		return err
	})
	return func() int {
		t.Helper()
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("cat in %s: %v", site, err)
		}
		return cmd.Process.Pid
	}
}

func TestLab_Command(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b")})
	out, err := l.Command(t.Context(), "b", "sh", "-c", "echo $$; cat /proc/net/dev; readlink /proc/self/ns/net").Output()
	if err != nil || !strings.Contains(string(out), tunName) {
		t.Fatalf("%s, %v", out, err)
	}
	if here, err := os.Readlink("/proc/self/ns/net"); err != nil || strings.Contains(string(out), here) {
		t.Errorf("it ran in the test's own namespace %s: %v", here, err)
	}

	cat(t, l, "a")() // its pid is its own
	var exit *exec.ExitError
	if err := l.Command(t.Context(), "a", "sh", "-c", "exit 7").Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7 gives %v", err)
	}

	l.Sysctl("a", "net.ipv4.tcp_wmem", "4096 65536 1234567")
	for site, want := range map[string]bool{"a": true, "b": false} {
		out, err := l.Command(t.Context(), site, "cat", "/proc/sys/net/ipv4/tcp_wmem").Output()
		if err != nil || strings.Contains(string(out), "1234567") != want {
			t.Errorf("%s: tcp_wmem is %s, %v", site, out, err)
		}
	}
}

// TestLab_Two are up at once, and do not meet.
func TestLab_Two(t *testing.T) {
	one, two := start(t, Topo{Sites: sites("a", "b")}), start(t, Topo{Sites: sites("a", "b")})
	probe(t, dial(t, one, "a", "udp", echo(t, one, "b")))
	two.Isolate("a")
	probe(t, dial(t, one, "a", "udp", echo(t, one, "b")))
	if st := two.Stats(false); st.Link("a", "b").Packets != 0 {
		t.Errorf("a packet of one lab is in the other: %+v", st.Links)
	}
	two.Close()
	if left := leftovers(two.name); len(left) > 0 {
		t.Errorf("of the lab that was closed there is %v", left)
	}
	probe(t, dial(t, one, "a", "udp", echo(t, one, "b")))
}

func TestLab_Refuses(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b")})
	ctx := t.Context()
	for name, err := range map[string]error{
		"link to nowhere":   l.Control.Link(ctx, Link{A: "a", B: "x"}),
		"link to itself":    l.Control.Link(ctx, Link{A: "a", B: "a"}),
		"loss of 2":         l.Control.Link(ctx, Link{A: "a", B: "b", Change: Change{Loss: new(2.0)}}),
		"isolate nowhere":   l.Control.Isolate(ctx, "x"),
		"isolate everybody": l.Control.Isolate(ctx, ""),
		"heal nowhere":      l.Control.Heal(ctx, "x"),
		"no lab":            NewControl("nolab").Heal(ctx, ""),
		"sysctl of all":     Sysctl(l.name, "a", "kernel.hostname", "x"),
		"sysctl up":         Sysctl(l.name, "a", "net./../kernel/hostname", "x"),
		"no sysctl":         Sysctl(l.name, "a", "net.ipv4.nothing", "1"),
		"dial by name":      second(Dial(ctx, l.name, "a", "tcp", "localhost:1")),
		"dial from nowhere": second(Dial(ctx, l.name, "x", "tcp", "10.77.1.1:1")),
		"run nowhere":       second(Command(ctx, l.name, "x", "true")),
		"run nothing":       second(Command(ctx, l.name, "a", "no-such-program")),
		"lab in use":        Up(ctx, Config{Name: l.name, Topo: Topo{Sites: sites("c")}}),
		"lab of bad name":   Up(ctx, Config{Name: "a-b", Topo: Topo{Sites: sites("c")}}),
		"lab of no sites":   Up(ctx, Config{Name: "ab"}),
		"down of a lab up":  second(Down(l.name)),
		"down of bad name":  second(Down("../x")),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if st := l.Stats(false); st.Site("a").Isolated || st.Link("a", "b").Loss != 0 {
		t.Errorf("what was refused is in force: %+v", st)
	}
	probe(t, dial(t, l, "a", "udp", echo(t, l, "b")))
}

func second[T any](_ T, err error) error { return err }

// leftovers lists what a lab has on the machine.
func leftovers(lab string) (paths []string) {
	for _, pattern := range []string{filepath.Join(netnsDir, nsPrefix(lab)+"*"), lockPath(lab), socketPath(lab)} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // the patterns are constant
		}
		paths = append(paths, found...)
	}
	return paths
}

// TestLab_AfterAKill: what a killed router leaves is removed by the next Start,
// by Close and by Down.
func TestLab_AfterAKill(t *testing.T) {
	kill := func() *Lab {
		l := start(t, Topo{Sites: sites("a", "b")})
		l.killed = true
		if err := l.router.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.router.Process.Wait(); err != nil {
			t.Fatal(err)
		}
		if left := leftovers(l.name); len(left) != 4 {
			t.Fatalf("a killed router left %v, want 2 namespaces, lock and socket", left)
		}
		return l
	}
	gone := func(by string, l *Lab) {
		t.Helper()
		if left := leftovers(l.name); len(left) > 0 {
			t.Errorf("after %s there is %v", by, left)
		}
	}
	l := kill()
	other := start(t, Topo{Sites: sites("a", "b")})
	gone("the next Start", l)
	l.Close()
	gone("Close", l)
	probe(t, dial(t, other, "a", "udp", echo(t, other, "b")))

	l = kill()
	l.Close()
	gone("Close", l)
	l.Close()

	l = kill()
	if _, err := Down(l.name); err != nil {
		t.Fatal(err)
	}
	gone("Down", l)
	if left := leftovers(other.name); len(left) != 4 {
		t.Errorf("of the lab that is up there is %v", left)
	}
}

// TestLab_EndsWithItsParent: a router whose parent was killed sees its stdin end.
func TestLab_EndsWithItsParent(t *testing.T) {
	l := start(t, Topo{Sites: sites("a", "b")})
	end := cat(t, l, "a") // reported, not killed
	l.stdin.Close()
	cluster.Eventually(t, cluster.Patience, "nothing is left", func() error {
		if left := leftovers(l.name); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	l.Close()
	pid := end()
	if said := l.stderr.String(); !strings.Contains(said, fmt.Sprint(pid)) {
		t.Errorf("process %d is not reported: %s", pid, said)
	}
}

package wan

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

var figures = flag.Bool("wan.figures", false, "measure the accuracy of the router; takes two minutes of a quiet machine")

// TestFigures measures what doc.go reports. It checks nothing but that a run was
// void: `make bench-wan-figures`.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("figures are measured with -wan.figures only")
	}
	const idle, warm, full = 200, 2 * time.Second, 5 * time.Second
	rtt := 10 * Millisecond
	for _, mtu := range []int{1500, 9000} {
		for _, rate := range []Rate{100 * Mbit, 200 * Mbit, 500 * Mbit, Gbit, 0} {
			t.Run(fmt.Sprintf("mtu=%d,rate=%s", mtu, rate), func(t *testing.T) {
				l := Start(t, Topo{MTU: mtu, Sites: sites("a", "b", "c"), Default: Params{RTT: rtt, Rate: rate}})
				ping := dial(t, l, "a", "udp", echo(t, l, "c"))
				l.Stats(true)
				quiet := above(t, ping, rtt, func(n int) bool { return n < idle })
				alone := l.Stats(true)

				start := time.Now()
				end := start.Add(warm + full)
				received := make([]int64, 2)
				errs := make([]error, len(received))
				var flows sync.WaitGroup
				for i := range received {
					to := l.Listen("b")
					flows.Go(func() { received[i], errs[i] = flow(t, l, "a", to, start.Add(warm), end) })
				}
				above(t, ping, rtt, func(int) bool { return time.Now().Before(start.Add(warm)) })
				l.Stats(true)
				busy := above(t, ping, rtt, func(int) bool { return time.Now().Before(end) })
				st := l.Stats(true)
				flows.Wait()
				if err := errors.Join(errs...); err != nil {
					t.Fatal(err)
				}
				late, packets := st.Site("b").Late, st.Link("a", "b").Packets
				t.Logf("%.0f Mbit/s, router %.0f %% of a core, machine %.0f %%, late %.2f %% of %d packets",
					float64(received[0]+received[1])*8/1e6/full.Seconds(), 100*st.CPUSeconds/st.Seconds, 100*st.MachineCPU, 100*float64(late)/float64(packets), packets)
				t.Logf("above the RTT: idle %s; beside the flows %s", quiet, busy)
				if err := errors.Join(alone.Trustworthy(), st.Trustworthy()); err != nil {
					t.Logf("VOID: %v", err)
				}
			})
		}
	}
}

// times are sorted.
type times []time.Duration

func (ts times) String() string {
	at := func(share float64) time.Duration {
		return ts[int(share*float64(len(ts)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("median %s, p90 %s, p99 %s", at(0.5), at(0.9), at(0.99))
}

// above probes 100 times a second while more is true, and gives what answers
// took above the RTT.
func above(t *testing.T, c net.Conn, rtt Duration, more func(n int) bool) (ts times) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; more(n); n++ {
		ts = append(ts, probe(t, c)-time.Duration(rtt))
		<-tick.C
	}
	slices.Sort(ts)
	return ts
}

// flow sends TCP from a site until end and counts what arrives after warm.
func flow(t *testing.T, l *Lab, from string, to net.Listener, warm, end time.Time) (received int64, err error) {
	out, err := l.Dialer(from)(t.Context(), "tcp", to.Addr().String())
	if err != nil {
		return 0, err
	}
	defer out.Close()
	in, err := to.Accept()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if err := errors.Join(out.SetWriteDeadline(end), in.SetReadDeadline(end)); err != nil {
		return 0, err
	}
	go func() { _, _ = io.Copy(out, zeros{}) }() // until the deadline
	for buf := make([]byte, 256<<10); ; {
		n, err := in.Read(buf)
		switch now := time.Now(); {
		case err != nil && now.Before(end):
			return received, err
		case err != nil:
			return received, nil
		case now.After(warm):
			received += int64(n)
		}
	}
}

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/test/wan"
)

// timelineEvery lies between two looks at the links' counters.
const timelineEvery = 250 * time.Millisecond

// timeline notes what each site sends and receives over a round, and what
// happened when: it shows which links are idle, and in which phase.
type timeline struct {
	start time.Time
	stop  context.CancelFunc
	done  sync.WaitGroup

	mu     sync.Mutex
	at     []time.Duration
	stats  []wan.Stats
	events []timelineEvent
}

type timelineEvent struct {
	at   time.Duration
	what string
}

// startTimeline begins one; without -wan.timeline it only remembers events.
func (m *farMesh) startTimeline(t *testing.T) *timeline {
	ctx, cancel := context.WithCancel(t.Context())
	l := &timeline{start: time.Now(), stop: cancel}
	if *benchTimeline == "" {
		return l
	}
	l.done.Go(func() {
		tick := time.NewTicker(timelineEvery)
		defer tick.Stop()
		for {
			st, err := m.lab.Control.Stats(ctx, false)
			if err == nil {
				l.mu.Lock()
				l.at, l.stats = append(l.at, time.Since(l.start)), append(l.stats, st)
				l.mu.Unlock()
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return l
}

// note remembers an event.
func (l *timeline) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, timelineEvent{time.Since(l.start), fmt.Sprintf(format, args...)})
}

// end stops it and writes a table: a line for each step with the Mbit/s that
// each site sent and received, packets dropped at caps, and the events.
func (l *timeline) end(t *testing.T, m *farMesh, name string) {
	t.Helper()
	l.stop()
	l.done.Wait()
	for _, e := range l.events {
		t.Logf("%6.2f s: %s", e.at.Seconds(), e.what)
	}
	if *benchTimeline == "" {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s; Mbit/s sent/received, packets dropped at the caps\n      s", name)
	for _, s := range l.stats[0].Sites {
		fmt.Fprintf(&b, " %14s", s.Name)
	}
	b.WriteByte('\n')
	events := l.events
	for i := 1; i < len(l.stats); i++ {
		step := (l.at[i] - l.at[i-1]).Seconds()
		fmt.Fprintf(&b, "%7.2f", l.at[i].Seconds())
		for j, s := range l.stats[i].Sites {
			before := l.stats[i-1].Sites[j]
			rate := func(now, before uint64) float64 { return float64(now-before) * 8 / 1e6 / step }
			fmt.Fprintf(&b, "  %4.0f/%4.0f %3d", rate(s.EgressBytes, before.EgressBytes), rate(s.IngressBytes, before.IngressBytes),
				s.EgressDrops+s.IngressDrops-before.EgressDrops-before.IngressDrops)
		}
		for len(events) > 0 && events[0].at <= l.at[i] {
			fmt.Fprintf(&b, "  %s", events[0].what)
			events = events[1:]
		}
		b.WriteByte('\n')
	}
	for _, s := range m.sites {
		b.WriteString("\n" + s.site + ":\n" + m.sockets(t, s.site))
	}
	write(t, *benchTimeline, name, b.String())
}

// sockets is what the kernel says of a site's TCP connections: windows, losses,
// and for how long each was held up by what.
func (m *farMesh) sockets(t *testing.T, site string) string {
	var all strings.Builder
	for _, cmd := range [][]string{{"nstat", "-az", "TcpOutSegs", "TcpRetransSegs", "TcpExtTCPTimeouts", "TcpExtTCPLostRetransmit", "TcpExtTCPSpuriousRTOs"}, {"ss", "-tinH", "state", "established"}} {
		if _, err := exec.LookPath(cmd[0]); err != nil {
			continue // it is only for people
		}
		out, err := m.lab.Command(t.Context(), site, cmd[0], cmd[1:]...).CombinedOutput()
		all.Write(out)
		if err != nil {
			fmt.Fprintln(&all, err)
		}
	}
	return all.String()
}

// write keeps a text in a file of its own.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	name = strings.NewReplacer(" ", "-", ",", "", "/", "").Replace(name)
	for i := 1; ; i++ {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%s.%d.txt", name, i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
}

package congestion

import (
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name      string
		algorithm string
		loss      float64 // of 1000 segments a step
		rtt       time.Duration
		alone     bool
		no        []string
		want      string
	}{
		{name: "bbr alone, which starts", algorithm: bbr, loss: 0.08, rtt: 160 * ms, alone: true},
		{name: "bbr flows fill a queue", algorithm: bbr, loss: 0.08, rtt: 160 * ms, want: cubic},
		{name: "bbr over a link that loses packets", algorithm: bbr, loss: 0.02, rtt: 85 * ms},
		{name: "bbr alone in a deep queue", algorithm: bbr, loss: 0.001, rtt: 160 * ms},
		{name: "bbr where there is no cubic", algorithm: bbr, loss: 0.08, rtt: 160 * ms, no: []string{cubic}, want: reno},
		{name: "bbr where there is nothing else", algorithm: bbr, loss: 0.08, rtt: 160 * ms, no: []string{cubic, reno}},
		{name: "cubic over a link that loses packets", algorithm: cubic, loss: 0.001, rtt: 82 * ms, want: bbr},
		{name: "cubic where there is no bbr", algorithm: cubic, loss: 0.001, rtt: 82 * ms, no: []string{bbr}},
		{name: "cubic flows share a queue", algorithm: cubic, loss: 0.003, rtt: 140 * ms},
		{name: "cubic without losses", algorithm: cubic, rtt: 81 * ms},
		{name: "reno over a link that loses packets", algorithm: reno, loss: 0.001, rtt: 82 * ms, want: bbr},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := &judge{}
			for _, a := range c.no {
				j.refused(a)
			}
			now, got := time.Unix(1000, 0), ""
			have := counters{algorithm: c.algorithm, rtt: c.rtt, shortest: 80 * ms}
			for i := 0; i < 6 && got == ""; i++ {
				if got = j.look(have, !c.alone, now); got != "" && i < 2 {
					t.Errorf("changed at look %d", i)
				}
				now = now.Add(step)
				have.sent += 1000
				have.resent += uint64(1000 * c.loss)
			}
			if got != c.want {
				t.Errorf("changes to %q, want %q", got, c.want)
			}
		})
	}
}

// TestJudge_LeavesAlone: a connection that would be changed at each look is
// changed ever more rarely.
func TestJudge_LeavesAlone(t *testing.T) {
	j := &judge{}
	begin := time.Unix(1000, 0)
	have := counters{algorithm: bbr, shortest: 80 * time.Millisecond}
	var changes []time.Duration
	for now := begin; now.Before(begin.Add(10 * time.Minute)); now = now.Add(step) {
		have.rtt = have.shortest
		if have.algorithm == bbr {
			have.rtt = 2 * have.shortest
		}
		if to := j.look(have, true, now); to != "" {
			have.algorithm = to
			changes = append(changes, now.Sub(begin))
		}
		have.sent += 1000
		have.resent += 50
	}
	if len(changes) < 3 || len(changes) > 12 {
		t.Errorf("changes after %v", changes)
	}
	for i := 2; i < len(changes); i++ {
		if a, b := changes[i-1]-changes[i-2], changes[i]-changes[i-1]; b < a {
			t.Errorf("changes after %v: %s, then %s", changes, a, b)
		}
	}
}

func TestJudge_FewSegmentsTellNothing(t *testing.T) {
	j := &judge{}
	now := time.Unix(1000, 0)
	have := counters{algorithm: bbr, rtt: time.Second, shortest: time.Millisecond}
	for range 6 {
		if to := j.look(have, true, now); to != "" {
			t.Fatalf("changed to %s", to)
		}
		now = now.Add(step)
		have.sent += leastSegments / 8
		have.resent += leastSegments / 8
	}
}

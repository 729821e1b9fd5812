package mesh

import (
	"strings"
	"testing"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/wan"
)

// emulated is a round with the machine so busy, so much of it by others, and so many of
// 100 packets late.
func emulated(busy, others float64, late uint64) measured {
	return measured{others: others, Stats: wan.Stats{MachineCPU: busy,
		Sites: []wan.SiteStatus{{SiteCounters: wan.SiteCounters{Late: late}}},
		Links: []wan.LinkStatus{{LinkCounters: wan.LinkCounters{Packets: 100}}}}}
}

func TestMeasured_Void(t *testing.T) {
	near := func(others float64) measured {
		return measured{near: true, others: others, Stats: wan.Stats{MachineCPU: 1}}
	}
	for name, c := range map[string]struct {
		round measured
		why   string // empty: it counts
		own   bool
	}{
		"quiet":                                  {emulated(0.7, 0.3, 0), "", false},
		"busy with the nodes' own work":          {emulated(0.83, 0.04, 3), "83 % busy", true},
		"busy with others' work":                 {emulated(0.83, 0.1, 0), "83 % busy", false},
		"busy with its own work, packets late":   {emulated(0.83, 0, 4), "4.0 % of 100 packets", false},
		"late packets alone":                     {emulated(0.1, 0, 4), "4.0 % of 100 packets", false},
		"loopback, all of the machine is in use": {near(0.24), "", false},
		"loopback, others use much of it":        {near(0.26), "others used 26 % of the machine, more than 25 %", false},
	} {
		own, err := c.round.void()
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) || own != c.own {
			t.Errorf("%s: void %v, own %v", name, err, own)
		}
	}
}

func TestBenchRow(t *testing.T) {
	good, own, late := emulated(0.6, 0.1, 0), emulated(0.83, 0.04, 0), emulated(0.5, 0, 9)
	type round struct {
		measured
		value float64
	}
	for name, c := range map[string]struct {
		rounds []round
		want   figures.Row // its note is looked at by the words
		says   []string
		hides  string // a word that the note has not; empty: any
	}{
		"those that count, and no more than were asked for": {
			rounds: []round{{good, 1}, {good, 9}, {good, 2}, {good, 100}},
			want:   figures.Row{Value: 2, Met: new(false), Rounds: 3},
			says:   []string{"noted; 3 rounds, 1 to 9; machine at most 60 % busy"},
		},
		"one that counts, and one that the nodes' own work made void": {
			rounds: []round{{good, 6}, {own, 1}},
			want:   figures.Row{Value: 6, Met: new(true), Rounds: 1},
			says:   []string{"1 more were void for the nodes' own work", "60 % busy"},
		},
		"one that counts, others void for several reasons": {
			rounds: []round{{own, 1}, {good, 6}, {late, 1}},
			want:   figures.Row{Value: 6, Met: new(true), Rounds: 1},
			says:   []string{"2 more were void;"},
			hides:  "own work",
		},
		"the nodes' own work made all void": {
			rounds: []round{{own, 7}, {own, 3}, {own, 4}},
			want:   figures.Row{Value: 4, Void: true},
			says:   []string{"3 rounds, 3 to 7; void, as the nodes' own work kept the machine above 75 %; packets came in time; machine at most 83 % busy"},
			hides:  "more were void",
		},
		"its value is that of rounds with packets in time": {
			rounds: []round{{late, 90}, {own, 7}},
			want:   figures.Row{Value: 7, Void: true},
			says:   []string{"own work", "1 more were void for other reasons"},
		},
	} {
		b := &bench{}
		for _, r := range c.rounds {
			b.add(t, r.measured, name, r.value, "1/s", figures.AtLeast(5), "noted")
		}
		rows, none := b.table()
		if len(rows) != 1 || len(none) != 0 {
			t.Errorf("%s: rows %+v, none for %q", name, rows, none)
			continue
		}
		got := rows[0]
		for _, s := range c.says {
			if !strings.Contains(got.Note, s) {
				t.Errorf("%s: the note is %q, without %q", name, got.Note, s)
			}
		}
		if c.hides != "" && strings.Contains(got.Note, c.hides) {
			t.Errorf("%s: the note is %q", name, got.Note)
		}
		met := got.Met != nil && *got.Met
		if got.Value != c.want.Value || got.Void != c.want.Void || got.Rounds != c.want.Rounds || got.Asked != *benchRounds || *got.At != 5 ||
			(got.Met == nil) != (c.want.Met == nil) || got.Met != nil && met != *c.want.Met {
			t.Errorf("%s: %+v", name, got)
		}
		if enough := got.Rounds >= *benchRounds; b.enough(name) != enough {
			t.Errorf("%s: enough is %v after %d rounds that count", name, !enough, got.Rounds)
		}
	}
}

func TestBenchTable_NamesWhatIsNotMeasured(t *testing.T) {
	b := &bench{}
	b.add(t, emulated(0.9, 0.3, 0), "others", 1, "s", nil, "")
	b.add(t, emulated(0.9, 0, 9), "late", 1, "s", nil, "")
	rows, none := b.table()
	if len(rows) != 0 || len(none) != 2 || none[0] != "not measured: others: no round counts: the machine was 90 % busy, more than 75 %" || !strings.HasPrefix(none[1], "not measured: late: ") {
		t.Errorf("%+v, %q", rows, none)
	}
}

// The first site sends each image of 50 KB once, whatever its share of the rest is.
func TestSmallBound(t *testing.T) {
	for _, c := range []struct {
		rates []float64
		want  float64
	}{
		{[]float64{400, 400, 400, 400}, 1000},
		{[]float64{100, 100, 100, 100}, 250},
		{[]float64{40, 100, 100, 100}, 100},
		{[]float64{100, 100, 100, 10}, 25},
		{[]float64{100, 50, 50, 50}, 125},
	} {
		if got := (&farMesh{rates: c.rates}).smallBound(); got < c.want-0.01 || got > c.want+0.01 {
			t.Errorf("at %v Mbit/s: %g images a second, not %g", c.rates, got, c.want)
		}
	}
}

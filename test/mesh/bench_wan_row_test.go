package mesh

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/wan"
)

// benchRow is a figure with its rounds.
type benchRow struct {
	name, unit string
	target     *figures.Target // nil: for information
	note       string
	all        []float64 // of rounds that count: no more than were asked for
	busy       float64   // share of the machine's processors in use in them, at most, 0..1
	others     float64   // the same of what others used
	void       []string  // why rounds don't count
	own        []ownRound
}

// ownRound is one that is void for the nodes' own work alone.
type ownRound struct{ value, busy, others float64 }

// add notes a round's figure.
func (b *bench) add(t *testing.T, st measured, name string, v float64, unit string, target *figures.Target, note string) {
	t.Helper()
	i := slices.IndexFunc(b.rows, func(r *benchRow) bool { return r.name == name })
	if i < 0 {
		i = len(b.rows)
		b.rows = append(b.rows, &benchRow{name: name, unit: unit, target: target})
	}
	r := b.rows[i]
	r.note = note
	if own, err := st.void(); err != nil {
		r.void = append(r.void, strings.ReplaceAll(err.Error(), "\n", ", "))
		if own {
			r.own = append(r.own, ownRound{v, st.MachineCPU, st.others})
		}
		t.Logf("void: %s: %.3g %s: %s (others %.0f %%)", name, v, unit, r.void[len(r.void)-1], 100*st.others)
		return
	}
	if len(r.all) < *benchRounds { // else it is another figure of the case that needs the round
		r.all = append(r.all, v)
		r.busy, r.others = max(r.busy, st.MachineCPU), max(r.others, st.others)
	}
	t.Logf("%s: %.3g %s (machine %.0f %%, others %.0f %%) %s", name, v, unit, 100*st.MachineCPU, 100*st.others, note)
}

// row is the median of the rounds that count; of those that are void for the nodes' own
// work, marked as void, if there is none; false: there is neither.
func (r *benchRow) row() (figures.Row, bool) {
	all, busy, others := r.all, r.busy, r.others
	void := len(all) == 0
	if void {
		for _, o := range r.own {
			all, busy, others = append(all, o.value), max(busy, o.busy), max(others, o.others)
		}
	}
	if len(all) == 0 {
		return figures.Row{}, false
	}
	var notes []string
	if r.note != "" {
		notes = append(notes, r.note)
	}
	if len(all) > 1 {
		notes = append(notes, fmt.Sprintf("%d rounds, %.3g to %.3g", len(all), slices.Min(all), slices.Max(all)))
	}
	switch more := len(r.void) - len(r.own); {
	case void:
		notes = append(notes, fmt.Sprintf("void, as the nodes' own work kept the machine above %.0f %%; packets came in time", 100*wan.MaxMachineCPU))
		if more > 0 {
			notes = append(notes, fmt.Sprintf("%d more were void for other reasons", more))
		}
	case len(r.void) > 0 && more == 0:
		notes = append(notes, fmt.Sprintf("%d more were void for the nodes' own work", len(r.void)))
	case len(r.void) > 0:
		notes = append(notes, fmt.Sprintf("%d more were void", len(r.void)))
	}
	if *benchScale != 1 {
		notes = append(notes, fmt.Sprintf("rates and bytes times %g", *benchScale))
	}
	notes = append(notes, fmt.Sprintf("machine at most %.0f %% busy", 100*busy))
	row := figures.New(r.name, median(all), r.unit, r.target, strings.Join(notes, "; "))
	row.Rounds, row.Asked, row.Others = len(all), *benchRounds, &others
	if void {
		row = row.Voided()
	}
	return row, true
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

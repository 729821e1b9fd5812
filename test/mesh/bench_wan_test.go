package mesh

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/wan"
)

var (
	benchWAN      = flag.Bool("wan.bench", false, "measure transfers over an emulated WAN, for minutes")
	benchRun      = flag.String("wan.run", "", "the cases whose name matches this expression")
	benchRounds   = flag.Int("wan.rounds", 3, "rounds of each case that are to count; the table has their medians")
	benchTries    = flag.Int("wan.tries", 0, "times that a case runs at most until -wan.rounds of its rounds count; default: twice as many")
	benchScale    = flag.Float64("wan.scale", 1, "part of the rates and of the image: for machines that can't carry them; ratios stay what they are")
	benchOut      = flag.String("wan.out", "", "file for the results as JSON lines")
	benchTCP      = flag.String("wan.tcp", "", "congestion control at all sites, where a case does not name one; default: the machine's")
	benchTimeline = flag.String("wan.timeline", "", "directory for what each site sent and received in each quarter of a second, a file a round")
)

// bench is one run of the cases.
type bench struct {
	rows []*benchRow
}

// TestBenchWAN measures what transfer promises, beside its targets: `make
// bench-wan`. A round with the machine above 75 %, or with late packets, is void:
// it says so, counts for nothing and is measured again, -wan.tries times in all. A
// row of fewer rounds than were asked for is marked, in the table and in the results.
// If none counts, and the nodes' own work is all that is wrong with some, the row has
// what these gave, marked as void.
func TestBenchWAN(t *testing.T) {
	if !*benchWAN {
		t.Skip("measured by `make bench-wan` (-wan.bench)")
	}
	wan.Need(t)
	only, err := regexp.Compile(*benchRun)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{}
	for _, c := range []struct {
		name string
		run  func(b *bench, t *testing.T, name string)
	}{
		{"4 receivers, 100 Mbit/s, 80 ms", func(b *bench, t *testing.T, name string) { b.everywhere(t, name, slices.Repeat([]float64{100}, 5)) }},
		{"8 receivers, 40 Mbit/s, 80 ms", func(b *bench, t *testing.T, name string) { b.everywhere(t, name, slices.Repeat([]float64{40}, 9)) }},
		{"4 receivers, one at a tenth, 80 ms", func(b *bench, t *testing.T, name string) { b.everywhere(t, name, []float64{100, 100, 100, 100, 10}) }},
		{"skopeo to 4 receivers, 100 Mbit/s, 80 ms", (*bench).skopeo},
		{"20 clients, one cold image, 100 Mbit/s, 80 ms", (*bench).clients20},
		{"cold pull, 200 Mbit/s, 160 ms", (*bench).coldPull},
		{"first bytes, 10 Mbit/s, 80 ms", (*bench).firstBytes},
		{"0.1 % loss, 100 Mbit/s, 100 ms, bbr", loss("bbr", 0.5, ofLink)},
		{"0.1 % loss, 100 Mbit/s, 100 ms, cubic", loss("cubic", 0.2, ofFlow)},
		{"kill -9 of the receiver midway, 100 Mbit/s, 80 ms", (*bench).killReceiver},
		{"kill -9 of the source midway, 100 Mbit/s, 80 ms", (*bench).killSource},
		{"4 holders, one lies and one stalls, 100 Mbit/s, 80 ms", (*bench).liar},
		{"small images to 3 sites, 400 Mbit/s, 80 ms", small(400)},
		{"small images to 3 sites, 100 Mbit/s, 80 ms", small(100)},
		{"a cap of 20 Mbit/s, 80 ms", (*bench).budget},
		{"a push is listed elsewhere, 80 ms", (*bench).hints},
		{"loopback", (*bench).loopback},
	} {
		if !only.MatchString(c.name) {
			continue
		}
		tries := *benchTries
		if tries == 0 {
			tries = 2 * *benchRounds
		}
		for range tries {
			if ok := t.Run(c.name, func(t *testing.T) { c.run(b, t, c.name) }); !ok || b.enough(c.name) {
				break // after a failure nothing is saved
			}
		}
	}
	b.end(t)
}

// enough reports whether each figure of a case has as many rounds as were asked for.
func (b *bench) enough(name string) bool {
	return !slices.ContainsFunc(b.rows, func(r *benchRow) bool {
		return strings.HasPrefix(r.name, name) && len(r.all) < *benchRounds
	})
}

// end prints the table with what missed its target, and saves it.
func (b *bench) end(t *testing.T) {
	rows, none := b.table()
	if err := errors.Join(figures.Table(os.Stdout, rows), figures.Misses(os.Stdout, rows)); err != nil {
		t.Fatal(err)
	}
	for _, line := range none {
		fmt.Println(line)
	}
	if *benchOut == "" || t.Failed() {
		return
	}
	if err := figures.Save(*benchOut, rows); err != nil {
		t.Fatal(err)
	}
}

// table gives the rows, and a line for each figure that has none.
func (b *bench) table() (rows []figures.Row, none []string) {
	for _, r := range b.rows {
		if row, ok := r.row(); ok {
			rows = append(rows, row)
		} else {
			none = append(none, fmt.Sprintf("not measured: %s: no round counts: %s", r.name, strings.Join(r.void, "; ")))
		}
	}
	return rows, none
}

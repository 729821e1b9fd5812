// Command control measures the control plane: real nodes of a mesh in one
// process, over links with a delay, against the targets.
//
//	make bench-control
//	go run ./test/bench/control -quick          # fewer samples
//	go run ./test/bench/control -run follower   # the cases whose name has "follower"
//
// The nodes share the machine's cores and disk, so what a processor does between
// two trips counts for all of them; the delays are exact. The table says how
// busy the machine was otherwise.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

// run is one call of the command.
type run struct {
	dir    string
	edits  int           // samples of each latency
	load   time.Duration // of the throughput case
	kills  int           // of the leader, per profile
	commit time.Duration // 0: the profile's own
	rows   []row
}

// row is a line of the table.
type row struct {
	name, unit string
	got, at    float64 // at: what must be reached; 0: for information
	least      bool    // at is the least, not the most
	note       string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("control", flag.ExitOnError)
	quick := f.Bool("quick", false, "fewer samples")
	only := f.String("run", "", "only the cases whose name matches this regular `expression`")
	dir := f.String("dir", os.TempDir(), "`directory` on the disk to measure")
	r := &run{edits: 300, load: 10 * time.Second, kills: 5}
	f.DurationVar(&r.commit, "commit", 0, "raft's commit timeout instead of the profile's")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *quick {
		r.edits, r.load, r.kills = 60, 3*time.Second, 1
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	for _, c := range cases {
		if !match.MatchString(c.name) || ctx.Err() != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), c.name)
		if r.dir, err = os.MkdirTemp(*dir, "portolan-control-"); err != nil {
			return err
		}
		err := c.run(r, ctx)
		if rerr := os.RemoveAll(r.dir); err == nil {
			err = rerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return r.table()
}

func (r *run) report(name string, got float64, unit string, target float64, least bool, note string) {
	r.rows = append(r.rows, row{name: name, got: got, unit: unit, at: target, least: least, note: note})
	fmt.Fprintf(os.Stderr, "          %s: %.1f %s\n", name, got, unit)
}

func (r *run) table() error {
	t := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "case\tmeasured\tunit\ttarget\tmet\t")
	for _, row := range r.rows {
		target, met := "", ""
		if row.at > 0 {
			rel := "<="
			ok := row.got <= row.at
			if row.least {
				rel, ok = ">=", row.got >= row.at
			}
			target, met = fmt.Sprintf("%s %g", rel, row.at), map[bool]string{true: "yes", false: "NO"}[ok]
		}
		fmt.Fprintf(t, "%s\t%.1f\t%s\t%s\t%s\t%s\n", row.name, row.got, row.unit, target, met, row.note)
	}
	return t.Flush()
}

// quantile of samples in milliseconds; q from 0 to 1.
func quantile(samples []time.Duration, q float64) float64 {
	s := slices.Clone(samples)
	slices.Sort(s)
	return ms(s[min(len(s)-1, int(q*float64(len(s))))])
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

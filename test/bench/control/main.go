// Command control measures the control plane against its targets: real nodes of
// a mesh in one process, over links with a delay, and meshes of real processes.
//
//	make bench-control
//	go run ./test/bench/control -quick          # fewer samples
//	go run ./test/bench/control -run follower   # the cases whose name has "follower"
//	go run ./test/bench/control -run soak       # ten minutes each: no leader change
//
// In one process the nodes share the machine's cores and disk, so what a
// processor does between two trips counts for all of them; the delays are exact.
// Cases with processes of their own are tests of package test/mesh, which this
// command runs; the saturated WAN needs root. The table says how busy the machine
// was otherwise. The command fails when a target is missed that is no matter of
// time: a leader change.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
)

// run is one call of the command.
type run struct {
	dir    string
	edits  int           // samples of each latency
	load   time.Duration // of the throughput case
	kills  int           // of the leader, per profile
	soak   time.Duration // of each soak
	commit time.Duration // 0: the profile's own
	rows   []figures.Row
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
	out := f.String("out", "", "`file` for the results as JSON lines; rows of other cases stay in it")
	profiles := f.String("profiles", "", "`directory` for what the run's processor time and locks went to, as Go's profiles")
	r := &run{edits: 300, load: 10 * time.Second, kills: 5, soak: 10 * time.Minute}
	f.DurationVar(&r.commit, "commit", 0, "raft's commit timeout instead of the profile's")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *quick {
		r.edits, r.load, r.kills, r.soak = 60, 3*time.Second, 1, time.Minute
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	endProfiles, err := startProfiles(*profiles)
	if err != nil {
		return err
	}
	defer endProfiles()
	for _, c := range cases {
		if !match.MatchString(c.name) || ctx.Err() != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), c.name)
		if err := r.one(ctx, *dir, c.run); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if *out != "" { // after each case: the next ones take their time
			if err := figures.Save(*out, r.rows); err != nil {
				return err
			}
		}
	}
	if err := figures.Table(os.Stdout, r.rows); err != nil {
		return err
	}
	if err := figures.Misses(os.Stdout, r.rows); err != nil {
		return err
	}
	for _, row := range r.rows {
		if row.Strict && row.Missed() {
			return fmt.Errorf("%s: %g %s, and there may be %g", row.Name, row.Value, row.Unit, *row.At)
		}
	}
	return nil
}

// one runs a case in a directory of its own, and notes how busy the machine was
// with other things.
func (r *run) one(ctx context.Context, dir string, f func(*run, context.Context) error) (err error) {
	if r.dir, err = os.MkdirTemp(dir, "portolan-control-"); err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(r.dir); err == nil {
			err = rerr
		}
	}()
	before, err := figures.Now()
	if err != nil {
		return err
	}
	have := len(r.rows)
	if err := f(r, ctx); err != nil {
		return err
	}
	others, err := before.Others()
	others = math.Round(100*others) / 100
	for i := range r.rows[have:] {
		r.rows[have+i].Others = &others
	}
	return err
}

// report notes a figure. target is what must be reached, nil: for information.
func (r *run) report(name string, got float64, unit string, target *figures.Target, note string) {
	row := figures.New(name, got, unit, target, note)
	r.rows = append(r.rows, row)
	fmt.Fprintf(os.Stderr, "          %s: %g %s\n", name, row.Value, unit)
}

// quantile of samples in milliseconds; q from 0 to 1.
func quantile(samples []time.Duration, q float64) float64 {
	s := slices.Clone(samples)
	slices.Sort(s)
	return ms(s[min(len(s)-1, int(q*float64(len(s))))])
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

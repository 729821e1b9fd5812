// Wanlab emulates a WAN between several sites on one Linux machine. Each site
// is a network namespace with one TUN device; a user-space router between the
// devices adds delay, rate limits, loss and cuts. See package wan for what it
// promises; tests start it by wan.Start.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/test/wan"
)

const usageText = `usage:
  wanlab up -f topo.json [--prio N] [--exit-with-stdin]
                                     create the sites, print "up", and route until
                                     SIGINT or SIGTERM, then remove them
  wanlab down                        remove what a crashed "up" left behind
  wanlab link A B [--oneway] [--down|--up] [--rtt 80ms] [--jitter 1ms] [--rate 100mbit] [--queue BYTES] [--loss 0.01]
  wanlab isolate SITE                cut a site off from all others
  wanlab heal [SITE]                 undo isolate and --down, for one site or for all
  wanlab stats [--json] [--reset]    show the counters (and then zero them)
  wanlab exec SITE -- CMD...         run a command in a site
The lab's name is $WANLAB or else "lab": two at once need two names. For all of it be root.
`

// lab is the name of the lab that is meant.
var lab = cmp.Or(os.Getenv("WANLAB"), "lab")

func main() {
	verbs := map[string]func([]string) error{"up": up, "down": down, "link": link,
		"isolate": isolate, "heal": heal, "stats": stats, "exec": execute}
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		usage()
	}
	if err := verbs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "wanlab: %v\n", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprint(os.Stderr, usageText)
	os.Exit(2)
}

func newFlags() *flag.FlagSet {
	fs := flag.NewFlagSet("", flag.ExitOnError)
	fs.Usage = usage
	return fs
}

// parse accepts flags only.
func parse(fs *flag.FlagSet, args []string) {
	_ = fs.Parse(args) // it exits
	if fs.NArg() > 0 {
		usage()
	}
}

func up(args []string) error {
	fs := newFlags()
	file := fs.String("f", "topo.json", "")
	prio := fs.Int("prio", 10, "")
	withStdin := fs.Bool("exit-with-stdin", false, "")
	parse(fs, args)
	f, err := os.Open(*file)
	if err != nil {
		return err
	}
	topo, err := wan.ReadTopo(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", *file, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if *withStdin {
		var end context.CancelFunc
		ctx, end = context.WithCancel(ctx)
		go func() {
			// Nobody writes: the read ends with the process at the other end.
			_, _ = io.Copy(io.Discard, os.Stdin)
			end()
		}()
	}
	return wan.Up(ctx, wan.Config{
		Name: lab, Topo: topo, Priority: *prio,
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Ready: func() { fmt.Println("up") },
	})
}

func down(args []string) error {
	parse(newFlags(), args)
	notes, err := wan.Down(lab)
	for _, note := range notes {
		fmt.Fprintln(os.Stderr, note)
	}
	return err
}

func execute(args []string) error {
	if len(args) < 3 || args[1] != "--" {
		usage()
	}
	// Its place is taken by ip and then by CMD, so pid, signals and exit status are
	// those of CMD.
	cmd, err := wan.Command(context.Background(), lab, args[0], args[2], args[3:]...)
	if err != nil {
		return err
	}
	return unix.Exec(cmd.Path, cmd.Args, os.Environ())
}

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

// watchEvery is how often --watch asks again.
const watchEvery = time.Second

func newBudgetCommand(a *app) *cobra.Command {
	var from, to string
	link := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().StringVar(&from, "from", "", "site that sends (default: any)")
		cmd.Flags().StringVar(&to, "to", "", "site that takes (default: any)")
		return cmd
	}
	named := func() error {
		if from == "" && to == "" {
			return errors.New("--from and --to are missing: name the site that sends, the one that takes, or both")
		}
		return nil
	}
	return noun("budget", "Caps on the links between sites",
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the caps on links",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				budgets, err := c.Budgets(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(budgets, func(w io.Writer) {
					var rows [][]string
					for _, b := range budgets {
						rows = append(rows, []string{cmp.Or(b.From, "any"), cmp.Or(b.To, "any"), strconv.FormatUint(uint64(b.Mbit), 10)})
					}
					table(w, []string{"FROM", "TO", "MBIT/S"}, rows)
				})
			},
		}),
		link(a.withJSON(&cobra.Command{
			Use:   "set MBIT --from SITE --to SITE",
			Short: "Cap a link, in Mbit/s",
			Long: `Cap what one site sends another, in 1,000,000 bits a second; with --from alone
all that the site sends, with --to alone all that it takes. Transfers under way
keep to it at once. Clients that wait for a pull go before what rules bring.`,
			Example: "  portolan budget set 20 --from fra --to sgp\n  portolan budget set 100 --from fra",
			Args:    args("MBIT"),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := named(); err != nil {
					return err
				}
				n, err := strconv.ParseUint(args[0], 10, 32)
				if err != nil || n == 0 {
					return fmt.Errorf("%q is no cap: give whole Mbit/s, 1 or more; take one away with: portolan budget delete", args[0])
				}
				c, err := a.client()
				if err != nil {
					return err
				}
				b, err := c.SetBudget(cmd.Context(), mesh.BudgetRequest{From: from, To: to, Mbit: uint32(n)})
				if err != nil {
					return err
				}
				return a.show(b, func(w io.Writer) {
					fmt.Fprintf(w, "from %s to %s at most %d Mbit/s\n", cmp.Or(b.From, "any"), cmp.Or(b.To, "any"), b.Mbit)
				})
			},
		})),
		link(&cobra.Command{
			Use:   "delete --from SITE --to SITE",
			Short: "Take a cap away",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				if err := named(); err != nil {
					return err
				}
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.DeleteBudget(cmd.Context(), from, to); err != nil {
					return err
				}
				a.say("from %s to %s there is no cap any more", cmp.Or(from, "any"), cmp.Or(to, "any"))
				return nil
			},
		}))
}

func newTransfersCommand(a *app) *cobra.Command {
	watch := false
	cmd := a.withJSON(&cobra.Command{
		Use:   "transfers",
		Short: "Show what comes to a site, and what has to",
		Long: `Show what comes to the site of the node that is asked (see --server), what has
to, why the last attempt of each failed, how fast it comes from each other site
and how long that will take, and which nodes sent wrong bytes.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if watch {
				// An interrupt is how it is meant to end.
				notified, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
				defer stop()
				ctx = notified
			}
			for {
				t, err := c.Transfers(ctx)
				if watch && ctx.Err() != nil {
					return nil // interrupted: the one who watches has seen enough
				}
				if err != nil {
					return err
				}
				if err := a.show(t, func(w io.Writer) { showTransfers(w, t) }); err != nil || !watch {
					return err
				}
				if pause(ctx, watchEvery) != nil {
					return nil //nolint:nilerr // interrupted
				}
			}
		},
	})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every second, until interrupted")
	return cmd
}

func showTransfers(w io.Writer, t mesh.Transfers) {
	fields(w, [2]string{"site", t.Site}, [2]string{"artifacts", fmt.Sprintf("%d under way, %d waiting, %d tried again later or paused", t.Running, t.Ready, t.Failed)})
	for _, p := range t.Paused {
		fmt.Fprintf(w, "paused: %s, by %s, %s\n", p.Site, p.By, when(p.At))
	}
	for _, p := range t.PausedRules {
		fmt.Fprintf(w, "paused: rule %s, %s, by %s, %s\n", p.Rule, cmp.Or(p.Site, "all sites"), p.By, when(p.At))
	}
	section := func(head []string, rows [][]string) {
		if len(rows) > 0 {
			fmt.Fprintln(w)
			table(w, head, rows)
		}
	}
	var rows [][]string
	for _, x := range t.Artifacts {
		next := "-"
		if x.NextAt != nil {
			next = when(*x.NextAt)
		}
		rows = append(rows, []string{x.Repository, short(x.Digest.String()), x.State, cmp.Or(x.Home, "-"), progress(x.Total-x.Missing, x.Total), left(x.ETA), strconv.Itoa(x.Attempts), next, cmp.Or(x.Reason, "-")})
	}
	section([]string{"REPOSITORY", "DIGEST", "STATE", "HOME", "DONE", "LEFT", "FAILED", "NEXT", "REASON"}, rows)
	rows = nil
	for _, h := range t.Held {
		how := "paused"
		if h.Cancelled {
			how = "cancelled"
		}
		rows = append(rows, []string{h.Repository, h.Digest.String(), how, cmp.Or(h.Site, "all"), h.By, when(h.At)})
	}
	section([]string{"HELD BACK", "DIGEST", "HOW", "SITE", "BY", "SINCE"}, rows)
	rows = nil
	for _, b := range t.Blobs {
		rows = append(rows, []string{short(b.Digest.String()), progress(b.Done, b.Total), strconv.FormatInt(b.Total, 10), cmp.Or(b.From, "-"), strconv.Itoa(b.Clients), left(b.ETA)})
	}
	section([]string{"BLOB", "DONE", "BYTES", "FROM", "CLIENTS", "LEFT"}, rows)
	rows = nil
	for _, l := range t.Links {
		most := "-"
		if l.Mbit > 0 {
			most = strconv.FormatUint(uint64(l.Mbit), 10)
		}
		rows = append(rows, []string{l.From, fmt.Sprintf("%.1f", l.Rate*8/1e6), most, strconv.FormatInt(l.Received, 10), strconv.FormatInt(l.Left, 10), left(l.ETA)})
	}
	section([]string{"LINK FROM", "MBIT/S", "CAP", "RECEIVED", "TO COME", "LEFT"}, rows)
	showStanding(w, t.Behind, t.Suspects, t.Disputes)
}

// showStanding writes how far a site is behind the others, whom it suspects, and what
// signed records contradict each other.
func showStanding(w io.Writer, behind []mesh.Behind, suspects []mesh.Suspect, disputes []mesh.Dispute) {
	var rows [][]string
	for _, b := range behind {
		known := "never"
		if b.Catalogue >= 0 {
			known = fmt.Sprintf("%.0fs ago", b.Catalogue)
		}
		bytes := strconv.FormatInt(b.Bytes, 10)
		if b.Unmeasured > 0 || b.Partial {
			bytes += " or more"
		}
		artifacts := strconv.Itoa(b.Artifacts)
		if b.Partial {
			artifacts += " or more"
		}
		done := "-"
		if b.Total > 0 {
			done = progress(b.Total-b.Bytes, b.Total)
		}
		rows = append(rows, []string{b.Site, fmt.Sprintf("%.0fs", b.Seconds), bytes, artifacts, done, left(b.ETA), known})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		table(w, []string{"BEHIND SITE", "BY", "BYTES", "ARTIFACTS", "DONE", "LEFT", "CATALOGUE"}, rows)
	}
	rows = nil
	for _, s := range suspects {
		rows = append(rows, []string{s.Site, short(s.Node), strconv.Itoa(s.Blobs), when(s.Since), when(s.At), s.Why})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		table(w, []string{"SUSPECT", "NODE", "BLOBS", "SINCE", "LAST", "SENT"}, rows)
		fmt.Fprintln(w, "A suspect that sends wrong bytes twice is not asked again for that blob. It is listed until this node restarts: have its disk and memory checked.")
	}
	rows = nil
	for _, d := range disputes {
		for _, r := range d.Roots {
			says := "not known yet"
			switch {
			case r.False:
				says = "yes"
			case slices.ContainsFunc(d.Roots, func(o mesh.SignedRoot) bool { return o.False }):
				says = "no"
			}
			rows = append(rows, []string{short(d.Digest.Encoded()), r.Site, short(r.Node), short(r.Root), when(d.At), says})
		}
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		table(w, []string{"DISPUTED BLOB", "SITE", "NODE", "SIGNED ROOT", "SEEN", "FALSE"}, rows)
		fmt.Fprintln(w, "Of two nodes that signed different unit lists of one blob one lied, or is broken. No wrong bytes are given out; have the node checked.")
	}
}

func progress(done, total int64) string {
	if total <= 0 {
		return "?"
	}
	return fmt.Sprintf("%.1f %%", float64(done)/float64(total)*100)
}

// left writes an estimate.
func left(seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

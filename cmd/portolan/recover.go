package main

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/node"
)

func newRecoverCommand() *cobra.Command {
	var data, lost, follow string
	var show, asJSON, stopped bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Bring a mesh back that has lost the majority of its voters for ever",
		Long: `Bring a mesh back that has lost the majority of its voters for ever.

Only for that: as long as a majority can be started again, start it. The node
must not run. consensus/RECOVERY.md has every step; in short:

  1. stop the nodes that are left;
  2. at each of them, see how far its control state is:
       portolan recover --data DIR --show
  3. at the one that has most (the highest term, then the highest entry):
       portolan recover --data DIR --lost SITE,SITE --i-have-stopped-all-others
  4. start it: it leads, alone. Then start the others: they take their control
     state from it, keep their images, and vote again by themselves;
  5. remove the lost sites from the mesh.

What is replaced is kept beside it. A node that did not vote can be recovered
too; the other nodes then believe it only if they are told:

  portolan recover --data DIR --follow SITE`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := dataDir(data)
			if err != nil {
				return err
			}
			say := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			switch {
			case show && (follow != "" || lost != "" || stopped), follow != "" && (lost != "" || stopped):
				return errors.New("--show, --follow and --lost are three different things: give one")
			case asJSON && !show:
				return errors.New("--json goes with --show")
			case show:
				s, err := node.Inspect(dir)
				if err != nil {
					return err
				}
				return showSurvey(cmd.OutOrStdout(), s, asJSON)
			case follow != "":
				if err := node.Follow(dir, follow); err != nil {
					return err
				}
				say("start the node with: portolan serve --data " + dir + "; it takes its control state from site " + follow)
				return nil
			}
			r, err := node.Recover(cmd.Context(), node.RecoverConfig{Data: dir, Lost: split(lost), Stopped: stopped, Say: say})
			if err != nil {
				return err
			}
			say(fmt.Sprintf("this node is the only voter now, from term %d, entry %d on; what it had before is in %s", r.Term, r.Index, r.Kept))
			say("start it with: portolan serve --data " + dir + "; then start the other sites that are left, and remove the lost ones")
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "the node's data directory (default: $PORTOLAN_DATA)")
	cmd.Flags().BoolVar(&show, "show", false, "only show what the node has of the control state")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --show: write one JSON document to stdout")
	cmd.Flags().StringVar(&lost, "lost", "", "the sites that are lost for ever, separated by commas")
	cmd.Flags().BoolVar(&stopped, "i-have-stopped-all-others", false, "say that no other node of the mesh runs, nor will before this one has been started")
	cmd.Flags().StringVar(&follow, "follow", "", "give this node's control state up for that of the site that was recovered")
	return cmd
}

func dataDir(flag string) (string, error) {
	dir := cmp.Or(flag, os.Getenv("PORTOLAN_DATA"))
	if dir == "" {
		return "", errors.New("no data directory is named: use --data DIR")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return dir, nil
}

// survey is --show's JSON.
type survey struct {
	Mesh       string         `json:"mesh"`
	Site       string         `json:"site"`
	Voter      bool           `json:"voter"`
	Generation string         `json:"generation"`
	Term       uint64         `json:"term"`
	Entry      uint64         `json:"entry"`
	ChangedAt  time.Time      `json:"changed_at"`
	Outdated   string         `json:"outdated"` // why it takes part no more; empty: it does
	Recoveries []recovery     `json:"recoveries"`
	Others     []surveyMember `json:"others"`
}

type recovery struct {
	At    time.Time `json:"at"`
	Node  string    `json:"node"`
	Entry uint64    `json:"entry"`
	Ended string    `json:"ended_generation"`
}

type surveyMember struct {
	Site  string `json:"site"`
	Voter bool   `json:"voter"`
	// What this node knows the other to have had; 0: nothing.
	HadTerm  uint64 `json:"had_term"`
	HadEntry uint64 `json:"had_entry"`
}

func showSurvey(w io.Writer, s *node.Survey, asJSON bool) error {
	if asJSON {
		out := survey{Mesh: s.Mesh.String(), Site: s.Site, Voter: s.Voter, Generation: hex.EncodeToString(s.Generation[:]), Term: s.Term, Entry: s.Index,
			ChangedAt: s.ChangedAt, Outdated: s.Outdated, Recoveries: []recovery{}, Others: []surveyMember{}}
		for _, r := range s.Recoveries {
			out.Recoveries = append(out.Recoveries, recovery{At: r.At, Node: r.Node.String(), Entry: r.Index, Ended: hex.EncodeToString(r.Ended[:])})
		}
		for _, m := range s.Members {
			out.Others = append(out.Others, surveyMember{Site: m.Site, Voter: m.Voter, HadTerm: m.HadTerm, HadEntry: m.HadLast})
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(out); err != nil {
			return fmt.Errorf("the answer cannot be written: %w", err)
		}
		return nil
	}
	fields(w, [2]string{"mesh", s.Mesh.String()}, [2]string{"site", s.Site}, [2]string{"role", role(s.Voter)},
		[2]string{"term", strconv.FormatUint(s.Term, 10)}, [2]string{"entry", strconv.FormatUint(s.Index, 10)},
		[2]string{"last change", s.ChangedAt.Format(time.RFC3339)})
	for _, r := range s.Recoveries {
		fmt.Fprintf(w, "recovered:  at %s, with entry %d\n", r.At.Format(time.RFC3339), r.Index)
	}
	if s.Outdated != "" {
		fmt.Fprintf(w, "takes part no more: %s\n", s.Outdated)
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, m := range s.Members {
		had := "-"
		if m.HadLast > 0 {
			had = fmt.Sprintf("term %d, entry %d", m.HadTerm, m.HadLast)
		}
		rows = append(rows, []string{m.Site, role(m.Voter), had})
	}
	table(w, []string{"OTHER SITE", "ROLE", "HAD AT LEAST"}, rows)
	return nil
}

func role(voter bool) string {
	if voter {
		return "voter"
	}
	return "learner"
}

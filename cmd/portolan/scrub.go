package main

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

func newScrubCommand(a *app) *cobra.Command {
	return noun("scrub", "The slow reading of a node's blobs, to find damaged ones",
		a.withJSON(&cobra.Command{
			Use:   "show",
			Short: "Show how far a node is, and what it found",
			Long: `Show how far the node that is asked (see --server) is with reading its blobs
again, and how many damaged ones it found. Those were put aside, and come again
from other sites that have them. A pass begins once a week.`,
			Args: args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				s, err := c.Scrub(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(s, func(w io.Writer) { showScrub(w, s) })
			},
		}),
		&cobra.Command{
			Use:   "start",
			Short: "Have a node read all its blobs again, from the first one on",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.StartScrub(cmd.Context()); err != nil {
					return err
				}
				a.say("the blobs are being read again: see how far with: portolan scrub show")
				return nil
			},
		})
}

func showScrub(w io.Writer, s mesh.Scrub) {
	pass, rate := "none has begun", "off: the node has --scrub-rate 0"
	if s.BegunAt != nil {
		pass = "ended, began " + when(*s.BegunAt)
		if s.Running {
			pass = "under way since " + when(*s.BegunAt)
		}
	}
	if s.Rate > 0 {
		rate = fmt.Sprintf("at most %.1f MB/s", float64(s.Rate)/1e6)
	}
	last := time.Time{}
	if s.PassedAt != nil {
		last = *s.PassedAt
	}
	fields(w, [2]string{"site", s.Site}, [2]string{"rate", rate}, [2]string{"pass", pass},
		[2]string{"read", fmt.Sprintf("%d blobs, %d bytes", s.Blobs, s.Bytes)},
		[2]string{"damaged", strconv.FormatInt(s.Damaged, 10)}, [2]string{"unread", strconv.FormatInt(s.Unread, 10)},
		[2]string{"last whole pass", when(last)})
}

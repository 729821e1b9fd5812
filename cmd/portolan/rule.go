package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/registryapi/mesh"
)

func newRuleCommand(a *app) *cobra.Command {
	return noun("rule", "Replication rules: what must be at which sites",
		newRuleCreateCommand(a), newRuleUpdateCommand(a), newRulePreviewCommand(a),
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the rules",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				rules, err := c.Rules(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(rules, func(w io.Writer) {
					var rows [][]string
					for _, r := range rules {
						rows = append(rows, []string{r.Name, list(r.Projects, "-"), list(r.Repositories, "all"), list(r.Tags, "all"), rulePlaces(r), ruleCopies(r), onOff(r)})
					}
					table(w, []string{"RULE", "PROJECTS", "REPOSITORIES", "TAGS", "SITES", "COPIES", "STATE"}, rows)
				})
			},
		}),
		a.withJSON(&cobra.Command{
			Use:   "show NAME",
			Short: "Show a rule",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				r, err := c.Rule(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.show(r, func(w io.Writer) { showRule(w, r) })
			},
		}),
		&cobra.Command{
			Use:   "delete NAME",
			Short: "Delete a rule; what it brought somewhere stays there",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.DeleteRule(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("deleted the rule %s", args[0])
				return nil
			},
		})
}

func onOff(r mesh.Rule) string {
	if r.Disabled {
		return "disabled"
	}
	return "in force"
}

func showRule(w io.Writer, r mesh.Rule) {
	fields(w, [2]string{"name", r.Name}, [2]string{"id", strconv.FormatInt(r.ID, 10)}, [2]string{"projects", list(r.Projects, "-")},
		[2]string{"repositories", list(r.Repositories, "all")}, [2]string{"tags", list(r.Tags, "all")},
		[2]string{"types", list(r.Types, "all")}, [2]string{"labels", list(r.Labels, "any")},
		[2]string{"sites", rulePlaces(r)}, [2]string{"copies", ruleCopies(r)}, [2]string{"priority", strconv.Itoa(r.Priority)},
		[2]string{"windows", cmp.Or(strings.Join(r.Windows, "; "), "always")}, [2]string{"bandwidth", bandwidth(r.Bandwidth)},
		[2]string{"deletions", deletions(r)}, [2]string{"state", onOff(r)}, [2]string{"created", when(r.CreatedAt)})
}

// rulePlaces says which sites a rule names, and how.
func rulePlaces(r mesh.Rule) string {
	if r.SiteLabels != "" {
		return "where " + r.SiteLabels
	}
	return list(ruleSites(r), "-")
}

func ruleCopies(r mesh.Rule) string {
	if r.Copies == 0 {
		return "all"
	}
	return strconv.Itoa(r.Copies)
}

func deletions(r mesh.Rule) string {
	if r.FollowDeletions {
		return "follow"
	}
	return "keep"
}

// bandwidth is a limit as people write it.
func bandwidth(bits uint64) string {
	if bits == 0 {
		return "no limit"
	}
	return humanize.SIWithDigits(float64(bits), 3, "bit/s")
}

// parseBandwidth reads one: 20M, 20Mbit/s, 1.5 Gbit/s or a number of bits per
// second; 0 or none: no limit.
func parseBandwidth(s string) (uint64, error) {
	if s == "none" || s == "" {
		return 0, nil
	}
	n, unit, err := humanize.ParseSI(s)
	if unit = strings.TrimSpace(unit); err != nil || n < 0 || n != math.Trunc(n) || n > math.MaxInt64 ||
		unit != "" && unit != "bit" && unit != "bit/s" {
		return 0, fmt.Errorf("--bandwidth %s: write it in bits per second, as 20M, 20Mbit/s or 1.5Gbit/s, or none", s)
	}
	return uint64(n), nil
}

const ruleGrammar = `Projects, repositories (the path below the project) and tags are patterns,
separated by commas: * for any part of a name, ** across slashes, {a,b}, [a-z].
Types are image, chart or patterns on artifact types; labels are KEY or
KEY=PATTERN on the manifest's annotations, and all of them must match.

Sites are names, or all: then those that join later too. Instead of them,
--site-labels chooses sites by their labels ("portolan site label"): key, !key,
key=value, key!=value, key in (a,b), key notin (a,b), separated by commas, all of
which must hold. With --copies N it is N of these sites, the one that accepted the
push first; where a site is away for long, another takes its place.

A window is when bytes may move for the rule: "Mon-Fri 22:00-06:00 Europe/Berlin",
"daily 01:00-05:00 UTC"; give --window once for each. Bandwidth is into each site.`

// ruleFlags are the flags that say what a rule is.
type ruleFlags struct {
	set                                            *pflag.FlagSet
	projects, repositories, tags, types, labels    string
	sites, siteLabels, bandwidth, copies, deletion string
	windows                                        []string
	priority                                       int32
	disabled                                       bool
}

func (f *ruleFlags) add(set *pflag.FlagSet) {
	f.set = set
	set.StringVar(&f.projects, "projects", "", "projects, separated by commas; patterns are possible")
	set.StringVar(&f.repositories, "repositories", "", "repositories below the project, separated by commas (default: all)")
	set.StringVar(&f.tags, "tags", "", "tags, separated by commas (default: all, and what has no tag)")
	set.StringVar(&f.types, "types", "", "artifact types, separated by commas: image, chart or patterns (default: all)")
	set.StringVar(&f.labels, "labels", "", "annotations that the manifest must have, separated by commas: KEY or KEY=PATTERN (default: any)")
	set.StringVar(&f.sites, "sites", "", "names of sites, separated by commas, or all")
	set.StringVar(&f.siteLabels, "site-labels", "", "sites by their labels, as 'region in (eu,us),!gpu'")
	set.StringVar(&f.copies, "copies", "all", "at how many of the sites, or all")
	set.Int32Var(&f.priority, "priority", 0, "of two artifacts that wait the one of the higher priority goes first")
	set.StringArrayVar(&f.windows, "window", nil, "when bytes may move, as 'Mon-Fri 22:00-06:00 Europe/Berlin'; several are possible (default: always)")
	set.StringVar(&f.bandwidth, "bandwidth", "none", "limit into each site, as 20Mbit/s, or none")
	set.StringVar(&f.deletion, "deletions", "keep", "what was deleted, or lost the tag: keep it at the sites, or follow")
	set.BoolVar(&f.disabled, "disabled", false, "not in force (--disabled=false: in force)")
}

// apply changes what was given on the command line.
func (f *ruleFlags) apply(r *mesh.RuleRequest) error {
	if f.set.Changed("sites") && f.set.Changed("site-labels") {
		return errors.New("--sites and --site-labels: give one of them")
	}
	var errs []error
	for name, to := range map[string]func(){
		"projects":     func() { r.Projects = patterns(f.projects) },
		"repositories": func() { r.Repositories = patterns(f.repositories) },
		"tags":         func() { r.Tags = patterns(f.tags) },
		"types":        func() { r.Types = patterns(f.types) },
		"labels":       func() { r.Labels = patterns(f.labels) },
		"sites":        func() { r.Sites, r.SiteLabels = split(f.sites), "" },
		"site-labels":  func() { r.Sites, r.SiteLabels = nil, f.siteLabels },
		"priority":     func() { r.Priority = f.priority },
		"window":       func() { r.Windows = slices.DeleteFunc(slices.Clone(f.windows), func(s string) bool { return s == "" }) },
		"disabled":     func() { r.Disabled = f.disabled },
		"copies": func() {
			n, err := strconv.ParseUint(f.copies, 10, 32)
			if f.copies == "all" {
				n, err = 0, nil
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("--copies %s: give a number of sites, or all", f.copies))
			}
			r.Copies = uint32(n)
		},
		"bandwidth": func() {
			n, err := parseBandwidth(f.bandwidth)
			if err != nil {
				errs = append(errs, err)
			}
			r.Bandwidth = n
		},
		"deletions": func() {
			if f.deletion != "keep" && f.deletion != "follow" {
				errs = append(errs, fmt.Errorf("--deletions %s: use keep or follow", f.deletion))
			}
			r.FollowDeletions = f.deletion == "follow"
		},
	} {
		if f.set.Changed(name) {
			to()
		}
	}
	return errors.Join(errs...)
}

// request is what would make a rule as it is.
func request(r mesh.Rule) mesh.RuleRequest {
	return mesh.RuleRequest{Name: r.Name, Projects: r.Projects, Repositories: r.Repositories, Tags: r.Tags, Types: r.Types, Labels: r.Labels,
		Sites: r.Sites, SiteLabels: r.SiteLabels, Copies: uint32(r.Copies), Priority: int32(r.Priority), Windows: r.Windows, Bandwidth: r.Bandwidth,
		FollowDeletions: r.FollowDeletions, Disabled: r.Disabled, IfVersion: r.Version}
}

// needed refuses a new rule that lacks what every rule has.
func (f *ruleFlags) needed() error {
	if f.projects == "" {
		return errors.New("--projects is missing: name projects, or patterns of names")
	}
	if f.sites == "" && f.siteLabels == "" {
		return errors.New("--sites is missing: name sites, or all, or choose them by --site-labels")
	}
	return nil
}

func newRuleCreateCommand(a *app) *cobra.Command {
	var f ruleFlags
	cmd := a.withJSON(&cobra.Command{
		Use:   "create NAME --projects PATTERNS --sites SITES",
		Short: "Make a rule: what must be at which sites",
		Long: `Make a rule: what must be at which sites. Sites bring it there and keep it there.
"portolan rule preview", with the same flags, shows first what would move.

` + ruleGrammar,
		Example: "  portolan rule create everywhere --projects prod --sites all\n" +
			"  portolan rule create asia --projects 'team-*' --tags 'v*' --sites sgp,syd\n" +
			"  portolan rule create spare --projects '*' --site-labels region=eu --copies 2 --window 'daily 22:00-06:00 Europe/Berlin'",
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := mesh.RuleRequest{Name: args[0]}
			if err := errors.Join(f.needed(), f.apply(&r)); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			made, err := c.CreateRule(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.show(made, func(w io.Writer) {
				fmt.Fprintf(w, "made the rule %s: projects %s to sites %s\n", made.Name, list(made.Projects, "-"), rulePlaces(made))
			})
		},
	})
	f.add(cmd.Flags())
	return cmd
}

func newRuleUpdateCommand(a *app) *cobra.Command {
	var f ruleFlags
	var name string
	cmd := a.withJSON(&cobra.Command{
		Use:   "update NAME",
		Short: "Change a rule",
		Long: `Change a rule: what a flag says is new, all else stays. An empty value takes a
list away: --tags '' is all tags again. Somebody else's change in between is not
overwritten: the command says so and changes nothing.

` + ruleGrammar,
		Example: "  portolan rule update everywhere --copies 2\n  portolan rule update asia --window '' --disabled=false",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			old, err := c.Rule(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r := request(old)
			if err := f.apply(&r); err != nil {
				return err
			}
			if name != "" {
				r.Name = name
			}
			up, err := c.UpdateRule(cmd.Context(), old.ID, r)
			if err != nil {
				return err
			}
			return a.show(up, func(w io.Writer) { showRule(w, up) })
		},
	})
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&name, "name", "", "another name")
	return cmd
}

func newRulePreviewCommand(a *app) *cobra.Command {
	var f ruleFlags
	var show int
	cmd := a.withJSON(&cobra.Command{
		Use:   "preview NAME",
		Short: "Show what a rule would move, before it is saved",
		Long: `Show what a rule would move, before it is saved. For a name that there is no rule
of, the flags are those of "rule create". For a rule that there is they are those
of "rule update", and the answer is the difference. Nothing is changed.

What sites hold is told by what the answering site has heard of them.`,
		Example: "  portolan rule preview asia --projects 'team-*' --sites sgp,syd\n  portolan rule preview everywhere --copies 2",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			q := mesh.PreviewRequest{RuleRequest: mesh.RuleRequest{Name: args[0]}, Show: show}
			old, err := c.Rule(cmd.Context(), args[0])
			var failed *client.Error
			switch {
			case err == nil:
				q.RuleRequest, q.Replaces = request(old), strconv.FormatInt(old.ID, 10)
				q.IfVersion = 0
			case !errors.As(err, &failed) || failed.Status != http.StatusNotFound:
				return err
			default:
				if err := f.needed(); err != nil {
					return err
				}
			}
			if err := f.apply(&q.RuleRequest); err != nil {
				return err
			}
			p, err := c.PreviewRule(cmd.Context(), q)
			if err != nil {
				return err
			}
			return a.show(p, func(w io.Writer) { showPreview(w, p, q) })
		},
	})
	f.add(cmd.Flags())
	cmd.Flags().IntVar(&show, "show", 20, "how many artifacts to name")
	return cmd
}

func showPreview(w io.Writer, p mesh.Preview, q mesh.PreviewRequest) {
	least := ""
	if p.Partial {
		least = "at least "
	}
	state := ""
	if q.Disabled {
		state = " (it is disabled: nothing moves until it is in force)"
	}
	fmt.Fprintf(w, "the rule matches %s%d artifacts, %d of them new at some site%s\n", least, p.Matched, p.Artifacts, state)
	if len(p.Sites) > 0 {
		fmt.Fprintln(w)
	}
	var rows [][]string
	for _, s := range p.Sites {
		takes := "-"
		if q.Bandwidth > 0 && s.Bytes > 0 {
			takes = (time.Duration(float64(s.Bytes*8)/float64(q.Bandwidth)) * time.Second).String()
		}
		rows = append(rows, []string{s.Site, strconv.Itoa(s.Artifacts), strconv.Itoa(s.Blobs), humanize.Bytes(uint64(s.Bytes)), takes,
			fmt.Sprintf("%d (%s)", s.HeldBlobs, humanize.Bytes(uint64(s.HeldBytes))), strconv.Itoa(s.Refused), strconv.Itoa(s.Dropped)})
	}
	if len(rows) > 0 {
		table(w, []string{"SITE", "ARTIFACTS", "BLOBS", "BYTES", "TAKES", "HELD", "REFUSED", "DROPPED"}, rows)
	}
	for i, name := range p.Names {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, name)
	}
	if n := p.Artifacts - len(p.Names); n > 0 && len(p.Names) > 0 {
		fmt.Fprintf(w, "and %d more\n", n)
	}
	for _, u := range p.Unseen {
		at := "no site that could be asked"
		if len(u.Sites) > 0 {
			at = strings.Join(u.Sites, ", ")
		}
		fmt.Fprintf(w, "project %s may not rest at the site that answers: ask at %s\n", u.Project, at)
	}
}

// patterns splits at commas, but not inside {a,b}.
func patterns(s string) []string {
	var out []string
	depth, start := 0, 0
	for i, r := range s + "," {
		switch {
		case r == '{':
			depth++
		case r == '}':
			depth--
		case r == ',' && depth <= 0:
			if p := s[start:i]; p != "" {
				out = append(out, p)
			}
			start = i + 1
		}
	}
	if start < len(s) { // an open brace: the node says what is wrong with it
		out = append(out, s[start:])
	}
	return out
}

// ruleSites names a rule's sites, and says which are there no more.
func ruleSites(r mesh.Rule) []string {
	out := slices.Clone(r.Sites)
	for i, s := range out {
		if slices.Contains(r.Gone, s) {
			out[i] = s + " (gone)"
		}
	}
	return out
}

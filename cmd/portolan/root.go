package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
)

// The variables that the API verbs read.
const (
	envServer   = "PORTOLAN_SERVER"
	envUsername = "PORTOLAN_USERNAME"
	envPassword = "PORTOLAN_PASSWORD"
)

// app is what the verbs that speak to the API share.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	server   string // --server
	json     bool   // --json
}

// newRootCommand makes the command with all verbs that speak to the API.
func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "portolan",
		Short: "A container registry that lives in many datacenters",
		Long: `A container registry that lives in many datacenters.

serve, join and dev run nodes, recover repairs one that does not run. All other
commands speak to one: to the node that
--server or PORTOLAN_SERVER names, or that of the last login, with the login in
PORTOLAN_USERNAME and PORTOLAN_PASSWORD or the saved one.`,
		SilenceErrors: true, // printed once, by main
		SilenceUsage:  true,
		Args:          noMore,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if asksNobody(cmd) && cmd.Flags().Changed(serverFlag) {
				return fmt.Errorf("%s speaks to no other node's API: leave out --%s", cmd.CommandPath(), serverFlag)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		root.PersistentFlags().Lookup(serverFlag).Hidden = asksNobody(cmd)
		help(cmd, args)
	})
	root.PersistentFlags().StringVar(&a.server, serverFlag, "", "URL of the node to speak to (default: $PORTOLAN_SERVER, then the last login)")
	root.AddCommand(
		newLoginCommand(a), newLogoutCommand(a), newVersionCommand(a), newStatusCommand(a),
		newWhereCommand(a), newWaitCommand(a), newSiteCommand(a), newNodeCommand(a), newTagCommand(a),
		newProjectCommand(a), newUserCommand(a), newRuleCommand(a), newBudgetCommand(a), newTransferCommand(a), newTransfersCommand(a), newScrubCommand(a), newTokenCommand(a), newMeshCommand(a), newKeysCommand(a), newBackupCommand(a),
	)
	return root
}

// serverFlag names the node to speak to.
const serverFlag = "server"

// askNobody marks the commands that --server means nothing to: it is an error
// there, since whoever gives it expects something of it.
const askNobody = "asks-nobody"

func asksNobody(cmd *cobra.Command) bool { return cmd.Annotations[askNobody] != "" }

// noMore refuses words after a command that only has others below it.
func noMore(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s has no command %q; see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return nil
}

// noun makes a command that only has verbs.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  noMore,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(verbs...)
	return cmd
}

// args wants exactly these arguments, named as in the verb's usage line.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		switch {
		case len(got) < len(names):
			return fmt.Errorf("%s is missing: %s", names[len(got)], cmd.UseLine())
		case len(got) > len(names):
			return fmt.Errorf("%q is too much: %s", got[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// maybe wants this argument or none, named as in the verb's usage line.
func maybe(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if len(got) > 1 {
			return args(name)(cmd, got)
		}
		return nil
	}
}

// withJSON gives a verb --json.
func (a *app) withJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.json, "json", false, "write one JSON document to stdout")
	return cmd
}

// client makes the client that the flags, the environment and the saved login
// ask for.
func (a *app) client() (*client.Client, error) {
	saved, err := a.loadLogins()
	if err != nil {
		return nil, err
	}
	server := firstOf(a.server, a.env(envServer), saved.Current)
	if server == "" {
		return nil, fmt.Errorf("no server is known: give --server URL, set %s, or log in with: portolan login URL", envServer)
	}
	if server, err = client.Normalize(server); err != nil {
		return nil, err
	}
	login := saved.Logins[server]
	if name := a.env(envUsername); name != "" && name != login.Username {
		login = savedLogin{Username: name}
	}
	if password := a.env(envPassword); password != "" {
		login.Password = password
	}
	if login.Username == "" && login.Password != "" {
		return nil, fmt.Errorf("%s is set, but no user name is known for %s: set %s too, or log in with: portolan login %s", envPassword, server, envUsername, server)
	}
	if login.Username != "" && login.Password == "" {
		return nil, fmt.Errorf("there is no password for %s at %s: set %s, or log in with: portolan login %s", login.Username, server, envPassword, server)
	}
	return client.New(server, login.Username, login.Password), nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// show writes v as JSON if that was asked for, else by text.
func (a *app) show(v any, text func(w io.Writer)) error {
	if !a.json {
		text(a.out)
		return nil
	}
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("the answer cannot be written: %w", err)
	}
	return nil
}

// say writes a line for people, beside what was asked for.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

// table writes rows under a head, in columns.
func table(w io.Writer, head []string, rows [][]string) {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		// The last tab makes the last cell one of its column, empty or not.
		fmt.Fprintln(tw, strings.Join(row, "\t")+"\t")
	}
	_ = tw.Flush()
	for line := range strings.Lines(b.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// fields writes one object's fields, each on a line.
func fields(w io.Writer, pairs ...[2]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range pairs {
		fmt.Fprintf(tw, "%s:\t%s\n", p[0], p[1])
	}
	_ = tw.Flush()
}

// list shows a list in a table's cell; all stands for an empty one.
func list(l []string, all string) string {
	if len(l) == 0 {
		return all
	}
	return strings.Join(l, ",")
}

// split reads a comma-separated flag.
func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

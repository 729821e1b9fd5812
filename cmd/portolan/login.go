package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
)

// logins is the file of saved logins. Passwords are in it as they are: it is
// its owner's alone (0600), as docker's config.json.
type logins struct {
	// Current is the server of the last login.
	Current string `json:"current"`
	// Logins by server.
	Logins map[string]savedLogin `json:"logins"`
}

type savedLogin struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// loginPath is ~/.config/portolan/login.json, on every system.
func (a *app) loginPath() (string, error) {
	dir := a.env("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.env("HOME")
		if home == "" {
			return "", errors.New("there is no home directory to keep the login in: set HOME, or PORTOLAN_USERNAME and PORTOLAN_PASSWORD instead of logging in")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "portolan", "login.json"), nil
}

func (a *app) loadLogins() (logins, error) {
	l := logins{Logins: map[string]savedLogin{}}
	path, _ := a.loginPath()
	if path == "" {
		return l, nil // no home: nobody can have logged in
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	} else if err != nil {
		return l, fmt.Errorf("the saved login cannot be read (%w): correct that, or delete the file and log in again", err)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("the saved login in %s is damaged: delete the file and log in again", path)
	}
	if l.Logins == nil {
		l.Logins = map[string]savedLogin{}
	}
	return l, nil
}

func (a *app) saveLogins(l logins) error {
	path, err := a.loginPath()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("the login cannot be saved: %w", err)
	}
	// By rename: a login that is read meanwhile is whole.
	f, err := os.CreateTemp(filepath.Dir(path), ".login-*") // made 0600
	if err != nil {
		return fmt.Errorf("the login cannot be saved: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("the login cannot be saved: %w", err)
	}
	return nil
}

func newLoginCommand(a *app) *cobra.Command {
	var username, password string
	var stdin bool
	cmd := &cobra.Command{
		Use:   "login [SERVER]",
		Short: "Save a login for a node, and use that node from now on",
		Long: `Save a login for a node, and use that node from now on.

The name and the password come from the flags, from PORTOLAN_USERNAME and
PORTOLAN_PASSWORD, or are asked for. They are tried before they are saved, in
~/.config/portolan/login.json, readable by you alone.`,
		Args: maybe("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			saved, err := a.loadLogins()
			if err != nil {
				return err
			}
			server, err := a.which(args, saved)
			if err != nil {
				return err
			}
			if server == "" {
				return errors.New("SERVER is missing: portolan login http://HOST:PORT")
			}
			if server, err = client.Normalize(server); err != nil {
				return err
			}
			if username = firstOf(username, a.env(envUsername)); username == "" {
				if username, err = a.prompt("User name: "); err != nil {
					return err
				}
			}
			if err := onePassword(password, stdin); err != nil {
				return err
			}
			if password == "" && !stdin {
				password = a.env(envPassword)
			}
			if password == "" {
				if password, err = a.readPassword("Password: ", stdin); err != nil {
					return err
				}
			}
			me, err := client.New(server, username, password).Me(cmd.Context())
			if err != nil {
				return err
			}
			saved.Current, saved.Logins[server] = server, savedLogin{Username: me.Name, Password: password}
			if err := a.saveLogins(saved); err != nil {
				return err
			}
			a.say("logged in to %s as %s", server, me.Name)
			return nil
		},
	}
	cmd.Flags().StringVarP(&username, "username", "u", "", "user name")
	cmd.Flags().StringVarP(&password, "password", "p", "", "password; others on this machine can see it, --password-stdin hides it")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from stdin")
	return cmd
}

func newLogoutCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "logout [SERVER]",
		Short: "Forget a saved login",
		Args:  maybe("SERVER"),
		RunE: func(_ *cobra.Command, args []string) error {
			saved, err := a.loadLogins()
			if err != nil {
				return err
			}
			server, err := a.which(args, saved)
			if err != nil {
				return err
			}
			if server == "" {
				a.say("no login is saved")
				return nil
			}
			if server, err = client.Normalize(server); err != nil {
				return err
			}
			if _, ok := saved.Logins[server]; !ok {
				a.say("no login for %s is saved", server)
				return nil
			}
			delete(saved.Logins, server)
			if saved.Current == server {
				saved.Current = ""
			}
			if err := a.saveLogins(saved); err != nil {
				return err
			}
			a.say("forgot the login for %s", server)
			return nil
		},
	}
}

// which is the server of a login or logout: the one that all other verbs would
// speak to, unless the argument names one.
func (a *app) which(args []string, saved logins) (string, error) {
	if len(args) == 1 && a.server != "" && a.server != args[0] {
		return "", fmt.Errorf("SERVER is %s and --%s is %s: give one of them", args[0], serverFlag, a.server)
	}
	return firstOf(strings.Join(args, ""), a.server, a.env(envServer), saved.Current), nil
}

// onePassword refuses two sources of one password.
func onePassword(flag string, stdin bool) error {
	if flag != "" && stdin {
		return errors.New("--password and --password-stdin are two passwords: give one of them")
	}
	return nil
}

func (a *app) prompt(what string) (string, error) {
	if _, ok := a.terminal(); !ok {
		return "", fmt.Errorf("there is nobody to ask for the user name: give --username, or set %s", envUsername)
	}
	fmt.Fprint(a.err, what)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && line == "" {
		return "", errors.New("no user name was given")
	}
	return strings.TrimSpace(line), nil
}

// maxPasswordInput bounds what is read from stdin for a password.
const maxPasswordInput = 4096

// readPassword reads a password from stdin: its first line if stdin was asked
// for, else without echo from the terminal.
func (a *app) readPassword(what string, stdin bool) (string, error) {
	if stdin {
		b, err := io.ReadAll(io.LimitReader(a.in, maxPasswordInput))
		if err != nil {
			return "", fmt.Errorf("the password cannot be read from stdin: %w", err)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			return "", errors.New("stdin has no password: write it there, as one line")
		}
		return line, nil
	}
	fd, ok := a.terminal()
	if !ok {
		return "", fmt.Errorf("there is nobody to ask for the password: use --password-stdin, or set %s", envPassword)
	}
	fmt.Fprint(a.err, what)
	b, err := term.ReadPassword(fd)
	fmt.Fprintln(a.err)
	if err != nil {
		return "", fmt.Errorf("the password cannot be read: %w", err)
	}
	return string(b), nil
}

// terminal gives stdin's descriptor if somebody sits there.
func (a *app) terminal() (int, bool) {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

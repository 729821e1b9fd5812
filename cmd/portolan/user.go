package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/harbor"
)

// userView is a user as the command line shows it.
type userView struct {
	ID        int64  `json:"id"`
	Name      string `json:"name"`
	Admin     bool   `json:"admin"`
	Email     string `json:"email"`
	RealName  string `json:"real_name"`
	CreatedAt string `json:"created_at"`
	// Password is there if it was made by this very call.
	Password string `json:"password,omitempty"`
}

func viewUser(u harbor.User) userView {
	return userView{ID: u.ID, Name: u.Name, Admin: u.SysAdmin, Email: u.Email, RealName: u.RealName, CreatedAt: stamp(u.CreationTime)}
}

// stamp writes a time for programs and people.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (u userView) kind() string {
	if u.Admin {
		return "system administrator"
	}
	return "user"
}

func newUserCommand(a *app) *cobra.Command {
	return noun("user", "Users",
		newUserCreateCommand(a),
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the users",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				users, err := c.Users(cmd.Context())
				if err != nil {
					return err
				}
				views := make([]userView, 0, len(users))
				var rows [][]string
				for _, u := range users {
					v := viewUser(u)
					views = append(views, v)
					rows = append(rows, []string{v.Name, v.kind(), v.Email, v.RealName, v.CreatedAt})
				}
				return a.show(views, func(w io.Writer) { table(w, []string{"USER", "KIND", "EMAIL", "REAL NAME", "CREATED"}, rows) })
			},
		}),
		a.withJSON(&cobra.Command{
			Use:   "show NAME",
			Short: "Show a user",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				u, err := c.User(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				v := viewUser(u)
				return a.show(v, func(w io.Writer) {
					fields(w, [2]string{"name", v.Name}, [2]string{"id", strconv.FormatInt(v.ID, 10)}, [2]string{"kind", v.kind()},
						[2]string{"email", v.Email}, [2]string{"real name", v.RealName}, [2]string{"created", v.CreatedAt})
				})
			},
		}),
		&cobra.Command{
			Use:   "delete NAME",
			Short: "Delete a user, and the roles with it",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.DeleteUser(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("deleted the user %s", args[0])
				return nil
			},
		},
		newUserPasswdCommand(a),
	)
}

func newUserCreateCommand(a *app) *cobra.Command {
	var r harbor.UserRequest
	var stdin bool
	cmd := a.withJSON(&cobra.Command{
		Use:   "create NAME",
		Short: "Make a user",
		Long: `Make a user.

The password comes from --password-stdin or --password; without one of them it is
made at random and shown this once.`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := onePassword(r.Password, stdin); err != nil {
				return err
			}
			r.Name = args[0]
			made := ""
			if stdin {
				if r.Password, err = a.readPassword("", true); err != nil {
					return err
				}
			} else if r.Password == "" {
				made = rand.Text()
				r.Password = made
			}
			u, err := c.CreateUser(cmd.Context(), r)
			if err != nil {
				return err
			}
			v := viewUser(u)
			v.Password = made
			return a.show(v, func(w io.Writer) {
				fmt.Fprintf(w, "made the %s %s\n", v.kind(), v.Name)
				if made != "" {
					fmt.Fprintf(w, "password: %s\n", made)
				}
			})
		},
	})
	cmd.Flags().StringVar(&r.Password, "password", "", "password; others on this machine can see it, --password-stdin hides it")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from stdin")
	cmd.Flags().StringVar(&r.Email, "email", "", "mail address")
	cmd.Flags().StringVar(&r.RealName, "real-name", "", "the person's name")
	cmd.Flags().StringVar(&r.Comment, "comment", "", "anything to remember")
	cmd.Flags().BoolVar(&r.SysAdmin, "admin", false, "make a system administrator")
	return cmd
}

func newUserPasswdCommand(a *app) *cobra.Command {
	var password string
	var stdin bool
	cmd := &cobra.Command{
		Use:   "passwd [NAME]",
		Short: "Change a password: yours, or as a system administrator anybody's",
		Long: `Change a password: yours, or as a system administrator anybody's.

The new one comes from --password-stdin or --password, or is asked for. A saved
login of yours is changed with it.`,
		Args: maybe("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := onePassword(password, stdin); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			me, err := c.Me(cmd.Context())
			if err != nil {
				return err
			}
			u := me
			if len(args) == 1 && args[0] != me.Name {
				if u, err = c.User(cmd.Context(), args[0]); err != nil {
					return err
				}
			}
			if password == "" {
				if password, err = a.newPassword(u.Name, stdin); err != nil {
					return err
				}
			}
			if err := c.SetPassword(cmd.Context(), u.ID, c.Password(), password); err != nil {
				return err
			}
			a.say("changed the password of %s", u.Name)
			if u.ID != me.ID {
				return nil
			}
			saved, err := a.loadLogins()
			if err != nil {
				return err
			}
			if l, ok := saved.Logins[c.Server()]; ok && l.Username == me.Name {
				l.Password = password
				saved.Logins[c.Server()] = l
				return a.saveLogins(saved)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&password, "password", "", "new password; others on this machine can see it, --password-stdin hides it")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the new password from stdin")
	return cmd
}

// newPassword reads a new password; from a terminal twice.
func (a *app) newPassword(name string, stdin bool) (string, error) {
	p, err := a.readPassword("New password of "+name+": ", stdin)
	if err != nil || stdin {
		return p, err
	}
	again, err := a.readPassword("Again: ", false)
	if err != nil {
		return "", err
	}
	if again != p {
		return "", fmt.Errorf("the two passwords differ: nothing was changed")
	}
	return p, nil
}

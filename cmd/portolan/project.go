package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/harbor"
	"github.com/portolan/portolan/registryapi/mesh"
)

// projectView is a project as the command line shows it.
type projectView struct {
	ID           int64  `json:"id"`
	Name         string `json:"name"`
	Public       bool   `json:"public"`
	Owner        string `json:"owner"`
	Repositories int    `json:"repositories"`
	CreatedAt    string `json:"created_at"`

	Guarantees *mesh.Guarantees `json:"guarantees,omitempty"`
	Residency  *mesh.Residency  `json:"residency,omitempty"`
}

func viewProject(p harbor.Project) projectView {
	return projectView{ID: p.ID, Name: p.Name, Public: p.Metadata.Public == "true", Owner: p.OwnerName, Repositories: p.RepoCount, CreatedAt: stamp(p.CreationTime)}
}

func (p projectView) access() string {
	if p.Public {
		return "public"
	}
	return "private"
}

func newProjectCommand(a *app) *cobra.Command {
	return noun("project", "Projects: the first part of an image's name, and the unit of access",
		newProjectCreateCommand(a),
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the projects that you can see",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				projects, err := c.Projects(cmd.Context())
				if err != nil {
					return err
				}
				views := make([]projectView, 0, len(projects))
				for _, p := range projects {
					views = append(views, viewProject(p))
				}
				return a.show(views, func(w io.Writer) {
					var rows [][]string
					for _, p := range views {
						rows = append(rows, []string{p.Name, p.access(), p.Owner, strconv.Itoa(p.Repositories), p.CreatedAt})
					}
					table(w, []string{"PROJECT", "ACCESS", "OWNER", "REPOSITORIES", "CREATED"}, rows)
				})
			},
		}),
		a.withJSON(&cobra.Command{
			Use:   "show NAME",
			Short: "Show a project",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				p, err := c.Project(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				v := viewProject(p)
				g, err := c.Guarantees(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				v.Guarantees = &g
				r, err := c.Residency(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				v.Residency = &r
				return a.show(v, func(w io.Writer) {
					fields(w, append([][2]string{{"name", v.Name}, {"id", strconv.FormatInt(v.ID, 10)}, {"access", v.access()},
						{"owner", v.Owner}, {"repositories", strconv.Itoa(v.Repositories)}, {"created", v.CreatedAt}}, append(guaranteeFields(g), residencyFields(r)...)...)...)
				})
			},
		}),
		newProjectTagsCommand(a),
		newProjectDurabilityCommand(a),
		newProjectSitesCommand(a),
		newProjectDeleteCommand(a),
		newProjectRestoreCommand(a),
		newMemberCommand(a),
	)
}

func newProjectCreateCommand(a *app) *cobra.Command {
	var public bool
	var req harbor.ProjectRequest
	cmd := a.withJSON(&cobra.Command{
		Use:   "create NAME",
		Short: "Make a project; you become its administrator",
		Args:  args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			req.Name, req.Metadata.Public = args[0], strconv.FormatBool(public)
			p, err := c.CreateProject(cmd.Context(), req)
			if err != nil {
				return err
			}
			v := viewProject(p)
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "made the %s project %s\n", v.access(), v.Name) })
		},
	})
	cmd.Flags().BoolVar(&public, "public", false, "everybody may pull, without a login (default: members only)")
	cmd.Flags().StringVar(&req.Tags, "tags", "", `"strong": the mesh decides what tags say (default: each site, and all sites merge)`)
	cmd.Flags().StringSliceVar(&req.Sites, "sites", nil, "sites that the project may rest at, separated by commas (default: all)")
	cmd.Flags().Uint32Var(&req.Durability, "durability", 0, "sites that must have a push before it is answered (default: the one that takes it)")
	return cmd
}

func newProjectDeleteCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a project",
		Long: `Delete a project. Its content goes, and its name is free, after 7 days; until then
"portolan project restore NAME" takes the deletion back.`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.DeleteProject(cmd.Context(), args[0], force); err != nil {
				return err
			}
			a.say("deleted the project %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if it has repositories")
	return cmd
}

func newMemberCommand(a *app) *cobra.Command {
	return noun("member", "Who may do what in a project",
		a.withJSON(&cobra.Command{
			Use:   "list PROJECT",
			Short: "List a project's members",
			Args:  args("PROJECT"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				members, err := c.Members(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				type view struct {
					User string `json:"user"`
					Role string `json:"role"`
				}
				views := make([]view, 0, len(members))
				var rows [][]string
				for _, m := range members {
					views = append(views, view{m.EntityName, m.RoleName})
					rows = append(rows, []string{m.EntityName, m.RoleName})
				}
				return a.show(views, func(w io.Writer) { table(w, []string{"USER", "ROLE"}, rows) })
			},
		}),
		&cobra.Command{
			Use:   "set PROJECT USER ROLE",
			Short: "Give a user a role: projectAdmin, maintainer, developer, guest or limitedGuest",
			Args:  args("PROJECT", "USER", "ROLE"),
			RunE: func(cmd *cobra.Command, args []string) error {
				role, err := state.ParseRole(args[2])
				if err != nil {
					return err
				}
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.SetMember(cmd.Context(), args[0], args[1], int(role)); err != nil {
					return err
				}
				a.say("%s is %s in project %s", args[1], role, args[0])
				return nil
			},
		},
		&cobra.Command{
			Use:   "delete PROJECT USER",
			Short: "Take a user's role away",
			Args:  args("PROJECT", "USER"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.DeleteMember(cmd.Context(), args[0], args[1]); err != nil {
					return err
				}
				a.say("%s has no role in project %s any more", args[1], args[0])
				return nil
			},
		})
}

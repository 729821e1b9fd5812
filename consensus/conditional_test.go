package consensus

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// TestConditional_ExactlyOneWins: two authors who saw the same version, at two
// nodes, at the same time: one edit is made, the other refused as a conflict,
// and which it is all nodes agree on.
func TestConditional_ExactlyOneWins(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	a, b := all[1], all[2]
	must := func(body proto.Message) int64 {
		t.Helper()
		res, err := a.node.Propose(t.Context(), "user:admin", body)
		if err != nil {
			t.Fatal(err)
		}
		return res.ID
	}
	pid := identity.NewProjectID()
	user := must(&command.UserCreate{Name: "ann", PasswordHash: "x"})
	project := must(&command.ProjectCreate{ProjectId: pid[:], Name: "prod", OwnerId: user})
	rule := must(&command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: []string{"*"}, AllSites: true}})
	for name, c := range map[string]struct {
		version func(*site) uint64
		edit    func(version uint64, by string) proto.Message
	}{
		"user": {
			func(s *site) uint64 { u, _ := s.node.State().View().UserByID(user); return u.Version },
			func(v uint64, by string) proto.Message {
				return &command.UserUpdate{Id: user, Comment: &by, IfVersion: v}
			},
		},
		"project": {
			func(s *site) uint64 { p, _ := s.node.State().View().ProjectByID(project); return p.Version },
			func(v uint64, by string) proto.Message {
				public := by == "a"
				return &command.ProjectUpdate{Id: project, Public: &public, IfVersion: v}
			},
		},
		"rule": {
			func(s *site) uint64 { r, _ := s.node.State().View().RuleByID(rule); return r.Version },
			func(v uint64, by string) proto.Message {
				return &command.RuleUpdate{Id: rule, IfVersion: v, Rule: &command.Rule{Name: "r", Projects: []string{by}, AllSites: true}}
			},
		},
		"member": {
			func(s *site) uint64 { m, _ := s.node.State().View().Member(project, user); return m.Version },
			func(v uint64, by string) proto.Message {
				return &command.MemberSet{ProjectId: project, UserId: user, Role: map[string]int32{"a": 1, "b": 2}[by], IfVersion: v}
			},
		},
		"profile": {
			func(s *site) uint64 { return s.node.State().View().Mesh().Version },
			func(v uint64, by string) proto.Message {
				return &command.ProfileSet{Profile: map[string]string{"a": "lan", "b": "wan"}[by], IfVersion: v}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for round := range 10 {
				await(t, "both have seen the same", func() bool { return a.node.State().View().Index() == b.node.State().View().Index() })
				v := c.version(a)
				errs := make(chan error, 2)
				for by, s := range map[string]*site{"a": a, "b": b} {
					go func() {
						_, err := s.node.Propose(t.Context(), "user:admin", c.edit(v, by))
						errs <- err
					}()
				}
				won, lost := 0, 0
				for range 2 {
					switch err := <-errs; {
					case err == nil:
						won++
					case errors.Is(err, &command.Error{Code: command.CodeConflict}):
						lost++
					default:
						t.Fatal(err)
					}
				}
				if won != 1 || lost != 1 {
					t.Fatalf("round %d: %d won and %d lost", round, won, lost)
				}
				for _, s := range all {
					await(t, "the edit at "+s.name, func() bool { return c.version(s) == v+1 })
				}
			}
		})
	}
	dumps := map[string]bool{}
	for _, s := range all {
		u, _ := s.node.State().View().UserByID(user)
		r, _ := s.node.State().View().RuleByID(rule)
		dumps[fmt.Sprintf("%+v %+v %+v", u, r, s.node.State().View().Members(project))] = true
	}
	if len(dumps) != 1 {
		t.Fatalf("the nodes do not agree: %v", dumps)
	}
}

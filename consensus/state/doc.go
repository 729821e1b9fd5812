// Package state is the control plane's replicated state: sites, nodes, projects,
// users, members, rules and join tokens, and the commands that change them.
//
// A [State] is fed by [State.Apply], one command after the other, by one
// goroutine. It is deterministic: the same commands at the same indexes give the
// same state on every node and at every replay. It reads no clock, no random
// numbers, no files and no network; times and ids arrive in the commands.
//
// Readers take a [View]: an immutable picture of the state at one index, cheap
// to get, safe for any number of goroutines, for as long as they like. Values in
// a View share their slices with it: read them, never write to them. What of it
// somebody sees, and no more, is what [View.ProjectsOf] walks.
//
//	changed := s.Changed() // before View, or a change in between is missed
//	v := s.View()
//	if p, ok := v.Project("prod"); ok { ... }
//	<-changed
//
// A command that the state does not allow is answered with a *command.Error and
// changes nothing. A command that this binary does not understand gives an
// [UnsupportedError], before anything is changed: the node must stop there, for
// skipping it would make this copy another one than everybody else's.
package state

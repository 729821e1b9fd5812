// Package tags is the one door through which a site sets and deletes tags,
// whatever the project's mode is: eventual tags go into the catalogue, strong
// ones through raft, and switches between the modes are carried out here. See
// DESIGN.md for what is promised.
//
// A Door is used by anyone at the same time. Run keeps the catalogue at what the
// control state says and takes part in switches; until it has caught up once,
// strong projects answer what was known at the last stop.
package tags

// Package harbor is the management API in Harbor's words: projects, members,
// users, repositories, artifacts and tags below /api/v2.0, with Harbor's paths,
// paging, filters and errors, so that what is written for Harbor (its own
// replication, its Terraform provider, harbor-cli) works here unchanged.
//
// What it does not do: sessions and cookies (basic authentication only), and
// what has no counterpart here yet; those paths are 404. Where Harbor leaves a
// choice, this API is the stricter one, and says so in the operation's summary.
//
// Every edit is a command, proposed in the name of who asks; it answers once
// the command is applied at this node. Passwords are hashed here, before they
// go into a command: no other node and no log ever sees one.
package harbor

// Package rules says at which sites an artifact should be, by the replication
// rules of the mesh. It is pure: the same rules, project, repository, tags and
// sites give the same answer at every node, whenever it is asked; it reads no
// clock, no store and no network.
//
// A rule names projects, repositories and tags by globs and sites by name:
//
//	projects      ["prod", "team-*"]        a project's name; at least one
//	repositories  ["app", "base/**"]        the path below the project; none: all
//	tags          ["v*", "latest"]          none: all, manifests without a tag too
//	sites         ["fra", "sgp"] or all
//
// In globs * stands for any run of characters but a slash, ** for any number of
// whole path components, ? for one character, [a-z] for a class and {a,b} for
// alternatives. A rule that is disabled, or that has no project glob, matches
// nothing. A project that may rest at some sites only is never sent elsewhere,
// whatever a rule says.
//
// What an artifact takes with it (the manifests of an index, its referrers) is
// the caller's to follow: this package looks at one manifest and its own tags.
package rules

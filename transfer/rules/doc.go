// Package rules says at which sites an artifact should be, by the replication
// rules of the mesh. It is pure: the same rules, sites and artifact give the
// same answer at every node, whenever it is asked; it reads no clock, no store
// and no network. What depends on the time takes it as an argument.
//
// A rule says what, where and how:
//
//	projects      ["prod", "team-*"]      globs on the project's name; at least one
//	repositories  ["app", "base/**"]      globs on the path below it; none: all
//	tags          ["v*", "latest"]        globs; none: all, and what has no tag
//	types         ["image", "chart"]      artifact types; none: all
//	labels        ["team=web*"]           annotations of the manifest; none: any
//
//	sites         ["fra", "sgp"] or all   or, instead of names,
//	site labels   region in (eu,us),!gpu  an expression on the sites' labels
//	copies        2                       at how many of them; 0: at all
//
//	priority      10                      of two artifacts that wait, the higher goes first
//	windows       Mon-Fri 22:00-06:00 Europe/Berlin
//	bandwidth     20 Mbit/s               into each site, shared by all that comes for it
//	follow deletions                      whether what was deleted goes there, too
//	disabled                              a rule that wants nothing
//
// # Patterns
//
// In globs * stands for any run of characters but a slash, ** for any number of
// whole path components, ? for one character, [a-z] for a class, [^a-z] for any
// other character, {a,b} for alternatives, and \ takes the next sign as it is.
// A pattern covers the whole name. Lists are alternatives: one that matches is
// enough, but of labels all must match. Any of a manifest's tags is enough.
//
// A type is a glob on the artifact type as the referrers API has it (the
// manifest's own, or else the media type of its config), or one of the words
// image (container images and their indexes) and chart (Helm).
//
// A label is KEY, which the manifest must have as an annotation whatever its
// value, or KEY=GLOB on its value. (Labels inside an image's config are not
// looked at: a site would have to fetch the config to know whether it wants it.)
//
// # Sites
//
// An expression on labels is a list of conditions, separated by commas, which
// must all hold, as Kubernetes writes them: key, !key, key=value, key!=value,
// key in (a,b), key notin (a,b). A site without the key fulfils !=, notin and
// !key.
//
// Of the sites that a rule names, those come in question where the project may
// rest: residency is stronger than a rule. With a number of copies, the site
// that accepted the push counts as one if it is among them; the others are
// chosen by rendezvous of the repository with the sites' names. So all of a
// repository lies together, layers are shared, every node comes to the same
// answer without asking, and a site that comes or goes moves the share of that
// site alone. (The nearest sites would be others at every node, and would change
// with every measurement.) A site that the control state calls away counts last:
// another takes its place, until it is back.
//
// # Windows
//
// A window is "DAYS FROM-TO ZONE": days as Mon-Fri, Sat,Sun or daily, times by
// the 24 hour clock, and a zone of the IANA database or UTC. The days are those
// on which it opens: with FROM after TO it goes past midnight, into the next
// day; 24:00 is the end of a day. It is open while the clock on
// the wall of the zone shows a time in it: an hour that summer time skips is
// skipped, an hour that comes twice counts twice. Outside of its windows a rule
// goes on wanting what it wants: only bytes do not move for it.
//
// # Bandwidth
//
// A bandwidth holds what comes to a site for the rule, all of it together (see
// transfer/swarm.Limit). A blob that a client reads meanwhile is not held. A
// change holds for what is on its way, too.
//
// # Several rules
//
// Rules add up. An artifact that several rules want at a site comes at the
// terms of the best one that is open: no limit of bandwidth before a limit, a
// higher one before a lower one; the highest priority of them counts. What one
// of them keeps after a deletion stays.
//
// What an artifact takes with it (the manifests of an index, its referrers) is
// the caller's to follow: this package looks at one manifest and its own tags.
package rules

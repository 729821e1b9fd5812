// Command bench measures Portolan beside distribution v3.1.2: the same client,
// the same machine and disk, in turn (ours, theirs, ours, …), in one run.
//
//	make bench                     # the sizes that the targets are about
//	make bench BENCH='-quick'      # the same cases, smaller, in minutes
//	make bench BENCH='-run tags'   # the cases whose name has "tags"
//
// It starts both registries itself and ends only what it started. Each case
// runs in several rounds; the table and the JSON lines have the medians over
// the rounds, and ratios of these medians. Absolute numbers say little about
// another machine: the ratios are the result. Each row says what share of the
// cores other processes used meanwhile; above a few percent, processor time is
// worth more than throughput and times.
//
// Both are set up as their users get them. Ours is `portolan serve`, one site,
// every acknowledged write synced; pulls are anonymous from the public project
// library, pushes carry basic auth in each request. Theirs is the filesystem
// driver with deletion on, the in-memory descriptor cache of its image's own
// settings, no login at all, no traces, no access log. Ours does strictly more.
//
// The client is lean on purpose (client.go): on a machine where client and
// servers share the cores, what it uses hides differences between them.
// Processor time is the server's alone, from /proc/PID/stat; over loopback the
// kernel charges much of the receiver's work to the sender.
package main

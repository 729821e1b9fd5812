// Package budget keeps what a site sends and takes within the caps that people
// set on its links.
//
// A link has a direction. The sender keeps the caps on what it sends one site
// and on what it sends in all, where the bytes leave; the receiver keeps the cap
// on what it takes in all, by reading no faster: the streams' windows hold the
// senders back. Links without a cap are never waited for, and no link waits for
// another.
//
// On a link with a cap clients go first, then what is hurried (manifests, what pushes
// wait for), replication and scrub (what a receiver says may wait for all else; what a
// node's own scrub found damaged comes as replication: a copy is missing then);
// each class that waits gets at least 5 % of the link, in pieces so small that
// no stream that waits its turn looks dead.
//
// Caps count what is on the wire, near enough: payload and a thirty-second part
// for the headers of TCP, TLS and the multiplexer.
//
// All of it may be used by many goroutines at once.
package budget

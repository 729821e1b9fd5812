// Package peer is the data plane's transport: authenticated, multiplexed
// streams between the nodes of a mesh.
//
// It promises that the other end of every stream is a node that
// [Config.Members] named when the stream was opened, that nothing here waits
// for ever (dials, openings, reads and writes end by context or by deadline),
// and that the memory and the number of streams that peers can claim are
// bounded. It does not retry, schedule, limit bandwidth or know what the bytes
// mean.
//
// Underneath is libp2p over TCP with TLS 1.3 and yamux; no other package
// imports it. A new yamux stream starts with a window of 256 KiB and grows
// while it is read, so users open few streams and keep them (DESIGN.md).
//
// Its users know it by the interfaces of package plane.
//
// A [Host] is safe for concurrent use. A [Stream] takes one reader and one
// writer at a time; Reset may be called from anywhere.
package peer

// Package node builds a Portolan node out of its parts, starts them in order
// and stops them in the opposite one. It is the only package that knows all
// others: the parts declare small interfaces for what they need of one another,
// and this package joins them.
//
//	identity, data directory, store          opened first, closed last
//	control port, raft                       the node list says who may connect
//	gossip, data plane, catalogue exchange   who is there, what they hold
//	reconciler                               what must be where
//	registry and management API              what users see; opened last, drained first
//
// [Run] is a node's life, from its data directory to the end of its context.
// [Join] makes an empty data directory that of a member.
package node

// Package identity holds the names of things in a mesh and the key that a node
// is known by.
//
// A node is its ed25519 key: the public half is its [NodeID], printed as a
// libp2p peer ID, used as raft server ID and as the key of its TLS certificate.
// Identity, store and incarnation are three things: a node may come back with
// a new key and keep its store, and every process start that writes gets a new
// [Incarnation].
//
// All types are values, safe for concurrent use and usable as map keys. Nothing
// here reads a clock or the network.
package identity

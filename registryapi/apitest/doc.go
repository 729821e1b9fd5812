// Package apitest is a control plane in one process, for tests of what stands
// on it: the real replicated state, its commands applied in the order they
// come, without raft. What it promises is what a mesh of one node does.
package apitest

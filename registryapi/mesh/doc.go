// Package mesh is the management API for what Harbor has no word for: sites,
// nodes, joining, replication rules, where an artifact is and when it will be
// everywhere. It answers below /api/mesh/v1, in registryapi/rest's conventions.
//
// It reads the control state by views and changes it by proposing commands;
// both work on every node. What it needs from the rest of the node it declares
// in [Config]; nothing here knows raft, gossip or the data plane.
//
// Two operations deserve a word. "where" asks every site what it has of one
// image and answers with what they say, the unreachable ones named. "wait" is a
// long poll over the same question: one call lasts [MaxSlice] at most and says
// whether the image is where it was wanted; the caller repeats it, with the
// digest that the first call resolved, until it is content or out of time. So
// the node keeps no waiting state, and the caller may go on at another node.
package mesh

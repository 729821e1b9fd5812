// Package access answers the two questions of every request: who is asking,
// and may they.
//
// Who: basic authentication against the local users of the replicated state,
// or a registry token that any node of the mesh has signed with its own key.
// May they: decided at each request from the state as this node has it now, so
// that a revocation is as fast as the control plane, whatever a token says. A
// token only ever narrows: it names its subject and the scope that was asked
// for, and grants nothing by itself.
//
// What it does not do: it keeps no sessions, writes nothing anywhere, and
// needs no other node. A node that is cut off decides by the last state it has.
//
// [Access] is safe for concurrent use and owns no goroutine.
//
// Costs are bounded: password checks run on as many cores as there are, a few
// more wait for a moment, and the rest are refused with [TooMany]; a checked
// password is remembered for five minutes under a key that exists only in this
// process and that changes with the stored hash; wrong passwords make the pair
// of account and client address wait longer and longer, and nobody else.
package access

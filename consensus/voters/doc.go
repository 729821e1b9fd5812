// Package voters decides which nodes vote in raft.
//
// At most one node of a site votes. There is one voter while fewer than three
// sites can vote, and three from then on; two would be worse than one, so the
// number never stays even. A voter that has been silent for long gives its vote
// to a learner that is well: it is demoted first, and promoted again only when a
// vote is free. Nobody is ever removed from the mesh here.
//
// Where the round trips between the servers are known, the voters are those that
// are nearest to one another: [Choose] finds the set whose longest round trip to
// a majority is the shortest. Votes move for distance alone only if the gain is
// large and has lasted, one at a time, and while everything is well.
//
// [Promoter] sees autopilot's picture of the servers and answers what to change.
// It implements raft-autopilot's Promoter and is used by its one goroutine.
package voters

// Package preflight tries the path between two nodes before it is needed: each
// port, both ways, as what moves content and decisions uses it.
//
//	asking node                                    checked node
//	  dials control, raft, gossip, data, registry ->
//	  sends packets of gossip                     ->  hears them
//	  asks (control port, else data port, else by way of a third node):
//	                                              <-  dials the same of the asking node
//	                                  hears them  <-  sends packets of gossip
//	  clock, round trip, room on the disk         <-> answers
//	                                                  keeps a little in its store
//	  bytes, as replication sends them            <-> a few seconds of each way
//
// What it promises: a line that says ok was tried just now, over a connection made
// for it, by the code that replication uses; a direction that nobody could try is
// said to be unknown and never to be well. Keys are those of the control state.
//
// What it does not: it repairs nothing and changes nothing but that bytes flow, as
// few as maxBurst each way, for burstFor at most, in the class of replication:
// budgets hold, and clients go first. What flows is not stored: of the store it is
// tried that it keeps 64 KiB for a moment, at most once a second whoever asks.
//
// A [Checker] may be used from any goroutine. One check runs at a time.
package preflight

// Package sync keeps the catalogues of the sites equal and knows who holds which
// blob.
//
// It promises that what one site wrote is at every other site that may hold the
// project, soon (a hint goes out at once, a poll catches what hints miss, a
// peer that comes back is asked at once) and whatever the order of failures:
// the receiver pulls what its vector lacks and takes the sender's vector over
// only after the last page. It pulls each other store's feed of blobs, with a
// cursor, and answers and asks the questions that depend on a copy: does a node
// hold these digests durably, will it keep them, where does its tag point.
//
// It does not decide what should be where (transfer/rules, transfer) and moves
// no blobs (transfer/swarm). It never trusts a hint: gossip and feeds choose
// whom to ask, and both ends of an exchange check that the project is known and
// may rest at both sites.
//
// A [Sync] is safe for concurrent use. New starts nothing; Run owns every
// goroutine and joins them before it returns. Per peer there are a few kept
// streams and a bounded queue; per stream one page is in memory.
package sync

// Package congestion chooses the congestion control of TCP connections by what
// happens on them.
//
// bbr goes on sending when packets are lost, which is right where links lose
// some: there cubic has a fraction of the link. But several bbr flows that meet
// at one queue fill it to its end and lose a tenth of what they send, and cubic
// ones lose next to nothing. Which of the two it is shows in the round trips: a
// full queue makes them longer, a link that loses packets does not.
//
//	w := congestion.Watch(logger)
//	defer w.Close()
//	w.Add(conn)       // what it sends is looked at until it is closed
//
// A kernel that lacks an algorithm, or does not allow it, keeps what it has. All
// methods may be called concurrently. Elsewhere than on Linux nothing is done.
package congestion

// Package swarm moves blobs between the nodes of a mesh, unit by unit, and
// lets readers follow a blob while it arrives.
//
// It promises that no byte reaches the store or a reader before it was checked
// against the blob's signed unit list, that the last unit reaches a reader only
// when the whole chain up to the digest holds, that a digest is fetched once at
// a time however many ask for it, and that a holder that dies, stalls or lies
// in the middle of a blob is replaced by the next. A reader that can take its word
// back may have bytes of the unit that it stands in before that (Early and Proven of
// what OpenBlob gives). It does not decide what
// should be here (package transfer does), nor who holds what ([Holders]).
//
// [Swarm.Fetch] brings a blob into the store. [Swarm.OpenBlob] gives a reader of
// a blob that is here or on its way. One goroutine per blob on its way (a
// "flight") belongs to the Swarm and is joined by [Swarm.Run]; flights outlive
// the callers that started them as [Swarm.OpenBlob] tells.
//
// DESIGN.md beside this file has the invariants, the failure table and the
// reasons; swarm.proto the protocol.
//
//	s, err := swarm.New(swarm.Config{Store: store, Host: host, Holders: sync, …})
//	go s.Run(ctx)
//	b, err := s.OpenBlob(ctx, swarm.Want{Digest: d, Size: n, PID: pid})
//	defer b.Close()
//	http.ServeContent(w, r, "", time.Time{}, b)
package swarm

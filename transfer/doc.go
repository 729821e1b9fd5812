// Package transfer brings content to where rules want it, and says where it is.
//
// A [Reconciler] runs at each node and looks after that node's store alone: it
// compares what the rules (and the pushes that this site accepted) want here
// with what the store holds, and closes the difference, for ever. A push
// elsewhere, a new rule, a lost blob, a new site and a repaired link are all
// just a difference. Nothing is queued on disk: what is wanted follows from the
// control state and the catalogue, what is held from the store, so a restart
// loses no task and finds no stale one.
//
// It promises that what a rule covers comes here without a pull, whole: the
// manifests of an index and all referrers with it; that one slow or unreachable
// artifact does not stop others; and that [Reconciler.Status] calls a site
// complete only on the site's own durable word.
//
// It does not schedule the bytes of a blob (transfer/swarm), move the catalogue
// (transfer/sync) or evaluate globs (transfer/rules), and it never deletes.
//
// A Reconciler is safe for concurrent use; Run owns all its goroutines.
package transfer

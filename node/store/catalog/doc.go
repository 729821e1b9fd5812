// Package catalog keeps what one site knows of every project's content: the
// replicated map of repositories, manifests and tags, and beside it the rows
// about the bytes that this site's store holds.
//
// It promises that what a call has acknowledged is on disk; that any site may
// write at any time and all sites that exchanged their deltas have the same
// entries; that a delete removes exactly what it had seen; that concurrent
// overwrites of a tag are noticed, and only those. Every read that a client
// waits for is a point read or a bounded scan, also in a repository of a
// million tags.
//
// It does not promise that the bytes behind an entry are here (ask Blob), that a
// holder hint is true (ask the holder), nor any order between sites other than
// what they had seen of each other.
//
// A Catalog may be used by any number of goroutines. All writes pass one
// committer goroutine, which gathers whatever waits into one synced
// transaction; reads run beside it on snapshots. Open starts the goroutines,
// Close joins them. Callbacks run in a goroutine of their own, one at a time,
// and may call the catalog.
//
// DESIGN.md has the numbered invariants, the key table and the failure table.
package catalog

// Package store is one store of a node: a disk with an id of its own, the blobs
// on it and the catalogue rows that speak of them, kept in step.
//
// It promises that what was acknowledged is there and whole after a kill or a
// power cut, that nothing else is visible, and that bytes only become a blob
// when their hash, SHA-256 or SHA-512, is the digest. Uploads survive a restart
// and tell the offset that is truly on disk. Blobs that arrive from peers are
// checked unit by unit ([Partial]) and resume where they stopped.
//
// Blobs up to [InlineMax] bytes are rows in the catalogue, larger ones are files
// or, with Config.Bucket, objects of a bucket (package blobs). A bucket that does
// not do what it is asked is [ErrUnavailable], and says nothing of a blob. It does not decide who may see what, which blobs should be
// here, or when one may go.
//
// All methods are safe for concurrent use; see the types for their owners.
// DESIGN.md beside this file has the invariants, the layout on disk and the
// failure table.
package store

// Package blobs keeps content-addressed files: what is too large for a row of
// the catalogue.
//
// It promises that a file under blobs/ is whole and has the digest of its name,
// also after a power cut: data goes to a temporary file, is hashed on the way,
// synced, renamed, and the directory is synced before [Upload.Install] or
// [Partial.Install] return. It knows nothing of rows: a file without a row is
// invisible, and package store, its only user, commits the row last.
//
// Layout below the store's directory (ab is the first byte of the digest):
//
//	blobs/<alg>/ab/<hex>            a blob
//	units/<alg>/ab/<hex>            its unit list, if it has more than one unit
//	uploads/<uuid>.data             bytes of an upload so far
//	uploads/<uuid>.ckpt             its algorithm, durable offsets and hash states
//	uploads/<uuid>.commit           digest under which .data is about to be renamed
//	uploads/probe.tmp               what [Store.Probe] writes, which is then
//	blobs/sha256/probe              for a moment
//	partial/<alg>-<hex>.data        a blob that is being fetched, units in place
//	partial/<alg>-<hex>.units       its record and list
//	partial/<alg>-<hex>.map         which units are durably in place
//	quarantine/<alg>-<hex>.<time>   files that were not what they should be
//
// With Config.Backend finished blobs and their lists are not files but objects of
// a bucket, under the same keys below the backend's root; all else stays on the
// disk, and one directory joins:
//
//	doubtful/<alg>-<hex>            an object may be in the bucket without a row
//
// [Upload.Install] and [Partial.Install] then return when the bucket has
// acknowledged the whole object, and leave the staged file where it is. Errors of
// the bucket are [*Unavailable]. Package drivers makes backends.
//
// <alg> is sha256 or sha512. The same content under a digest of each is two
// blobs, which share nothing.
//
// A [Store] is safe for concurrent use. An [Upload] has one writer at a time
// ([Upload.Acquire]); a [Partial] has one owner who may use it from many
// goroutines. No goroutine outlives the call that started it.
package blobs

// Package manifest reads the manifests that clients push: OCI image manifests
// and indexes, Docker schema 2 and manifest lists, OCI artifact manifests, and
// anything else as an opaque artifact that refers to nothing.
//
// [Parse] promises that what it accepts names its parts by well-formed digests
// and sizes, that a document cannot be read as an image by one client and as an
// index by another nor with other parts, and that its cost is bounded: no name
// twice in one object, no known name in another case, no digest with two sizes,
// UTF-8 throughout. It does not look whether the parts exist. It never changes bytes: a manifest's digest is over what was sent.
//
// A [Manifest] is a value that nobody changes; safe for concurrent reads.
package manifest

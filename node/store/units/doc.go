// Package units lets a receiver check any piece of a blob, from any peer, in
// any order, with nothing but the blob's digest as the last word.
//
// SHA-256 and SHA-512 are chains: the state after byte n depends on the state
// before and the bytes between. While a blob is hashed at ingest a [Hasher] keeps
// the raw state (32 or 64 bytes) at every unit border; the kept states are the
// [List]. A unit holds when hashing it from state i gives state i+1; the first
// state is the standard's constant and the last link, with the hash's own
// padding, gives the digest. When every link holds, the digest of the whole is
// verified without a second read.
//
// A single link only proves that a unit fits the list. The list is therefore
// canonical (the unit size follows from the blob's size, the length of a state
// from the digest's algorithm) and bound to a [Record] {digest, size, unit size,
// SHA-256 of the list} that the ingesting node signed. [ParseList] refuses a list
// that its record does not name. Position and length always come from the record,
// never from the sender: the bytes of a list are states and nothing else, because
// a marshaled hash state also carries a length and pending bytes that a liar
// could choose.
//
// A [Checker] checks a unit while it comes, 64 KiB at a time, against sub-states
// that the sender made with [List.SubStates]. They are the sender's word and in no
// list: what fits them may be shown early by who can take it back, and is proven
// when the unit links, not before.
//
// What it does not do: it does not say whether a record's signer is a member of
// the mesh (the caller knows that), and a record does not prove that bytes with
// this digest exist.
//
// The kept states come out of what crypto/sha256 and crypto/sha512 marshal
// themselves to. [Available] runs test vectors against that format once for each;
// should a toolchain change one, the package answers [ErrUnavailable] for it and
// callers go on with whole digests.
//
// Lists and records are immutable and safe for concurrent use; a Hasher and a
// Checker have one owner.
package units

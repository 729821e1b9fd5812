package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

var (
	// ErrNotFound says that the entry or row is not here. A tag that was deleted
	// and a blob that is being deleted are not here.
	ErrNotFound = errors.New("not in the catalogue")
	// ErrDeleting says that a file of this digest is being unlinked: try again
	// once RemoveBlob has run.
	ErrDeleting = errors.New("the blob is being deleted")
	// ErrInUse says that a blob can't be collected: it is referenced, leased or
	// pinned.
	ErrInUse = errors.New("the blob is in use")
	// ErrTooLarge says that one request needs a larger transaction than the
	// database takes; nothing of it was written.
	ErrTooLarge = errors.New("the request touches too many entries for one transaction")
	// ErrInvalid says that a name, digest or page is malformed.
	ErrInvalid = errors.New("invalid")
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("the catalogue is closed")
	// ErrVectorDropped says that this catalogue dropped its vector of the project
	// after the exchange began (rule 7): begin the exchange anew.
	ErrVectorDropped = errors.New("the vector was dropped during the exchange")
	// ErrUnheard says that the control state has spoken of a tag, and that this site has
	// not heard of that yet: it may not write over it.
	ErrUnheard = errors.New("the control state has spoken of the tag, and has not been heard here yet")
)

const (
	// MaxInlineManifest is the size up to which a manifest's bytes live in the
	// catalogue and travel with its entry.
	MaxInlineManifest = 64 << 10
	// MaxInlineBlob is the size up to which any other blob's bytes live in the
	// catalogue instead of in a file.
	MaxInlineBlob = 32 << 10
	// LoserKeptFor is how long the losers of a conflict stay roots after the
	// write that ended it (rule 8).
	LoserKeptFor = 30 * 24 * time.Hour
)

// Dot names one request that changed the catalogue, for ever and everywhere.
type Dot struct {
	Inc identity.Incarnation // incarnation of the node that took the request
	Seq uint64               // its number there, in commit order; from 1
}

// IsZero reports whether d names no request.
func (d Dot) IsZero() bool { return d == Dot{} }

func (d Dot) String() string { return fmt.Sprintf("%s.%d", d.Inc, d.Seq) }

// LogValue implements slog.LogValuer.
func (d Dot) LogValue() slog.Value { return slog.StringValue(d.String()) }

// Vector gives for each incarnation the highest sequence number up to which all
// dots of one project have been seen.
type Vector map[identity.Incarnation]uint64

// Covers reports whether v has seen d.
func (v Vector) Covers(d Dot) bool { return v[d.Inc] >= d.Seq }

// Dominates reports whether v has seen all that o has.
func (v Vector) Dominates(o Vector) bool {
	for inc, seq := range o {
		if v[inc] < seq {
			return false
		}
	}
	return true
}

// Equal reports whether both have seen the same.
func (v Vector) Equal(o Vector) bool { return v.Dominates(o) && o.Dominates(v) }

// Clone copies v.
func (v Vector) Clone() Vector { return maps.Clone(v) }

// incs gives the incarnations in ascending order.
func (v Vector) incs() []identity.Incarnation {
	out := make([]identity.Incarnation, 0, len(v)) // one in most entries
	for inc := range v {
		out = append(out, inc)
	}
	slices.Sort(out)
	return out
}

// MarshalBinary gives pairs of big-endian incarnation and sequence number, by
// ascending incarnation: equal vectors have equal bytes.
func (v Vector) MarshalBinary() ([]byte, error) {
	out := make([]byte, 0, 16*len(v))
	for _, inc := range v.incs() {
		out = binary.BigEndian.AppendUint64(out, uint64(inc))
		out = binary.BigEndian.AppendUint64(out, v[inc])
	}
	return out, nil
}

// UnmarshalBinary reads what MarshalBinary wrote.
func (v *Vector) UnmarshalBinary(b []byte) error {
	if len(b)%16 != 0 {
		return fmt.Errorf("%w: vector of %d bytes, expected pairs of 16", ErrInvalid, len(b))
	}
	out := make(Vector, len(b)/16)
	for ; len(b) > 0; b = b[16:] {
		out[identity.Incarnation(binary.BigEndian.Uint64(b))] = binary.BigEndian.Uint64(b[8:])
	}
	*v = out
	return nil
}

// Check sums up all entries of a project, deleted ones included. Stores with
// equal entries have equal checks.
type Check struct {
	Count uint64   // number of entries
	Xor   [16]byte // exclusive or of all entries' hashes
}

// RefKind says what a manifest refers to.
type RefKind uint8

// The numbers are stored.
const (
	RefBlob     RefKind = 1 // config or layer
	RefManifest RefKind = 2 // child of an index
)

// Ref is one descriptor of a manifest that must be here for it to be complete.
// Subjects are no refs.
type Ref struct {
	Digest digest.Digest
	Size   int64
	Kind   RefKind
}

// Put is one accepted manifest PUT.
type Put struct {
	PID          identity.ProjectID
	Repo         string // path below the project
	Digest       digest.Digest
	MediaType    string
	Size         int64
	Bytes        []byte        // the manifest; nil above MaxInlineManifest, then the bytes are a blob
	Subject      digest.Digest // "" if none
	ArtifactType string        // "" if none
	Refs         []Ref
	Tags         []string // tags that are set in the same request
	Home         string   // site that accepts it
	Actor        string   // who asked
	ACLIndex     uint64   // raft index of the rights under which it was allowed
}

// TagInfo is what a tag says now.
type TagInfo struct {
	Name      string
	Digest    digest.Digest
	Stamp     uint64
	Dot       Dot
	Actor     string
	At        time.Time       // when it was set, by the clock of the site that set it
	Conflicts []digest.Digest // what concurrent writes set that lost; usually none
}

// ManifestInfo is the entry of one manifest.
type ManifestInfo struct {
	Repo         string
	Digest       digest.Digest
	MediaType    string
	Size         int64
	Subject      digest.Digest
	ArtifactType string
	Home         string
	Actor        string
	Dot          Dot
	At           time.Time // when it was last pushed
}

// RepositoryInfo counts what one repository has.
type RepositoryInfo struct {
	Name      string
	Tags      uint64
	Manifests uint64
}

// Conflict is one concurrent overwrite of a tag that lost. The site that wrote
// the loser reports it.
type Conflict struct {
	PID    identity.ProjectID
	Repo   string
	Tag    string
	Loser  digest.Digest
	Winner digest.Digest // "" if a delete ended the conflict before it was heard of here
	Dot    Dot           // of the losing write
	Actor  string        // who made the losing write, "" if it was gone already
}

// BlobState is the state of a blob's row. There is no row for an absent blob.
type BlobState uint8

// The numbers are stored.
const (
	Present  BlobState = 1
	Deleting BlobState = 2 // being unlinked: absent to everyone
)

// Class says why this store holds a blob.
type Class uint8

// The numbers are stored and sent.
const (
	Home   Class = 1 // accepted here from a client: responsible for it
	Placed Class = 2 // a rule wants it here: responsible for it
	Cached Class = 3 // somebody pulled it here: evictable
	Gone   Class = 4 // only in feeds: no longer here
)

// BlobRow says that this store holds a blob.
type BlobRow struct {
	Digest digest.Digest
	Size   int64
	State  BlobState // PutBlob sets it
	Class  Class
	Record []byte // signed unit record in its own encoding; nil if there is none
	Inline bool   // the bytes are in the catalogue, see Content; PutBlob sets it
	// For is the project that the bytes came for, if they came for one: PutBlob takes
	// it as a proof (see Proven). In a row that is read: the first with a proof.
	For identity.ProjectID
}

// Lease keeps a blob from collection and visible in a repository until then.
type Lease struct {
	PID   identity.ProjectID
	Repo  string
	Until time.Time
}

// Pin is a promise to another store to keep a blob until this catalogue has seen the
// PUT that relies on it. Time alone ends none: the sites may be cut off from one another
// for longer than any time that one would give.
type Pin struct {
	Digest digest.Digest
	For    identity.StoreID
	PID    identity.ProjectID
	Dot    Dot // zero while the PUT has no dot yet: EndPins ends the promise
	// Until is when the PUT has been answered for certain: EndPins may end the promise
	// when all is here that the other store wrote by then.
	Until time.Time
}

// FeedEntry is one change of what a store holds.
type FeedEntry struct {
	N      uint64
	Digest digest.Digest
	State  Class // Home, Placed, Cached or Gone
}

// Page is a part of a delta in a versioned encoding, opaque to whoever carries
// it. The entries of one request are all in one page.
type Page []byte

// Applied says what a page changed here.
type Applied struct {
	Entries      int           // in the page
	Changed      int           // of these, changed something here
	NewManifests []NewManifest // live now and not before
	MissingBytes []ManifestRef // live, small, and their bytes neither came along nor are here
	Retagged     []ManifestRef // what tags say now that said something else before, or were not there
}

// NewManifest is a manifest that a page brought.
type NewManifest struct {
	ManifestRef
	Home  string // site that accepted it
	Whole bool   // its bytes came along, and are here for good
}

// ManifestRef names a manifest inside a project.
type ManifestRef struct {
	Repo   string
	Digest digest.Digest
}

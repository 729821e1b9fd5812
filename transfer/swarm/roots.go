package swarm

import (
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

const (
	// maxRoots bounds the blobs whose records are remembered; the oldest are
	// forgotten first.
	maxRoots = 4096
	// maxRecords bounds the records remembered of one blob: of so many signers.
	maxRecords = 8
	// maxDisputes bounds what people are shown of records that contradict each other.
	maxDisputes = 256
	// passOverFor is how long a list that could not be brought to its end is left for
	// one that has failed less often.
	passOverFor = time.Minute
	// forgerWaits is how long the list of a node that signed a false one before is left
	// for the one that units are here of: for so long holders of that may be away.
	forgerWaits = time.Hour
)

// Root is what one node signed about a blob.
type Root struct {
	Signer identity.NodeID
	Root   string // of the unit list, in hexadecimal digits
	False  bool   // proven to be: the blob came whole under another one
}

// Dispute is two records of one blob that name different unit lists. A blob has one
// true list: one of the signers lied, or is broken.
type Dispute struct {
	Digest digest.Digest
	Roots  [2]Root
	At     time.Time
}

// roots are the records that this node has seen, with right signatures, by blob.
// They are the evidence of who lies when units do not fit a list.
type roots struct {
	mu       sync.Mutex
	blobs    map[digest.Digest]*claims
	order    []digest.Digest // of blobs, oldest first
	disputes []Dispute       // oldest first
}

// claims are the records of one blob.
type claims struct {
	records []units.Record // one of each signer and root
	tries   map[[32]byte]tries
	proven  *[32]byte // the blob came whole under this one
	begun   *[32]byte // units are here that came under this one
	at      time.Time // the last flight began that took it up
}

// tries are those under a list that did not bring the blob whole.
type tries struct {
	failed int
	at     time.Time // the last one
}

// see notes a record, and gives those of other lists that it was not held against
// before. lie: it is of another list than the one that the blob came whole under.
func (r *roots) see(rec units.Record, now time.Time) (against []units.Record, lie bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(rec.Digest)
	if slices.ContainsFunc(c.records, func(o units.Record) bool { return o.Signer == rec.Signer && o.Root == rec.Root }) || len(c.records) >= maxRecords {
		return nil, false
	}
	for _, o := range c.records {
		if o.Root != rec.Root {
			against = append(against, o)
		}
	}
	c.records = append(c.records, rec)
	lie = c.proven != nil && *c.proven != rec.Root
	for _, o := range against {
		if len(r.disputes) >= maxDisputes {
			r.disputes = slices.Delete(r.disputes, 0, 1)
		}
		r.disputes = append(r.disputes, Dispute{Digest: rec.Digest, At: now, Roots: [2]Root{c.shown(o), c.shown(rec)}})
	}
	return against, lie
}

// of gives what is remembered of a blob; mu is held.
func (r *roots) of(d digest.Digest) *claims {
	c := r.blobs[d]
	if c != nil {
		return c
	}
	if len(r.order) >= maxRoots {
		delete(r.blobs, r.order[0])
		r.order = slices.Delete(r.order, 0, 1)
	}
	if r.blobs == nil {
		r.blobs = map[digest.Digest]*claims{}
	}
	c = &claims{tries: map[[32]byte]tries{}}
	r.blobs[d], r.order = c, append(r.order, d)
	return c
}

func (c *claims) shown(rec units.Record) Root {
	return Root{Signer: rec.Signer, Root: hex.EncodeToString(rec.Root[:]), False: c.proven != nil && *c.proven != rec.Root}
}

// prove notes that a blob came whole under a record's list, which is the only true
// one, and gives the records of others that were not known to be false before.
func (r *roots) prove(rec units.Record) (lies []units.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(rec.Digest)
	if c.proven != nil {
		return nil
	}
	c.proven = &rec.Root
	for _, o := range c.records {
		if o.Root != rec.Root {
			lies = append(lies, o)
		}
	}
	for i := range r.disputes {
		if d := &r.disputes[i]; d.Digest == rec.Digest {
			for k := range d.Roots {
				d.Roots[k].False = d.Roots[k].Root != hex.EncodeToString(rec.Root[:])
			}
		}
	}
	return lies
}

// disputed says whether records of a blob name different lists.
func (r *roots) disputed(d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.blobs[d]
	return c != nil && slices.ContainsFunc(c.records, func(o units.Record) bool { return o.Root != c.records[0].Root })
}

// begins notes the list that the units of a blob are kept under.
func (r *roots) begins(d digest.Digest, root [32]byte, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(d)
	c.begun, c.at = &root, now
}

// failed notes that a blob could not be brought whole under a list, and that another
// one is there.
func (r *roots) failed(d digest.Digest, root [32]byte, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(d)
	c.tries[root] = tries{c.tries[root].failed + 1, now}
}

// dropped notes that nothing of a blob is kept any more.
func (r *roots) dropped(d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.blobs[d]; c != nil {
		c.begun = nil
	}
}

// passOver says whether a list is to be left for another one. It failed lately, and
// there is one that failed less often: so each has its turn, whoever answers first. Or
// its signer is known to forge, and units are here that came under another one.
func (r *roots) passOver(rec units.Record, forger bool, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.blobs[rec.Digest]
	switch {
	case c == nil:
		return false
	case c.proven != nil:
		return *c.proven != rec.Root
	}
	if forger && c.begun != nil && *c.begun != rec.Root && now.Sub(c.at) < forgerWaits {
		return true
	}
	mine := c.tries[rec.Root]
	return mine.failed > 0 && now.Sub(mine.at) < passOverFor && slices.ContainsFunc(c.records, func(o units.Record) bool {
		return c.tries[o.Root].failed < mine.failed
	})
}

// Disputes lists the pairs of records that contradict each other, the last first.
func (s *Swarm) Disputes() []Dispute {
	s.roots.mu.Lock()
	defer s.roots.mu.Unlock()
	out := slices.Clone(s.roots.disputes)
	slices.Reverse(out)
	return out
}

// witness takes a record whose signature is right and whose signer is known. One that
// contradicts another is an alarm, once for each pair. It ends no transfer: the blob's
// own bytes tell which list is true.
func (s *Swarm) witness(rec units.Record) {
	against, lie := s.roots.see(rec, time.Now())
	for _, o := range against {
		s.metrics.disputes.Inc()
		s.log.Error("two signed records of one blob name different unit lists: one signer lied or is broken", "digest", rec.Digest,
			"node", o.Signer, "site", s.site(o.Signer), "root", hex.EncodeToString(o.Root[:]),
			"other_node", rec.Signer, "other_site", s.site(rec.Signer), "other_root", hex.EncodeToString(rec.Root[:]))
	}
	if lie {
		s.falseList(rec)
	}
}

// provenBy notes that all of a blob is here under a record's list, every link of it.
// Who signed another one is named.
func (s *Swarm) provenBy(rec units.Record) {
	for _, lie := range s.roots.prove(rec) {
		s.falseList(lie)
	}
}

// falseList names the signer of a list that is not the blob's. It is not used again.
func (s *Swarm) falseList(rec units.Record) {
	s.addBadRoot(rec.Root)
	s.suspects.signedFalsely(rec.Signer, rec.Digest)
	s.metrics.badLists.WithLabelValues(rec.Signer.String()).Inc()
	s.log.Error("a node signed a unit list that is not the blob's, which came whole under another one: have the node checked", "digest", rec.Digest,
		"node", rec.Signer, "site", s.site(rec.Signer), "root", hex.EncodeToString(rec.Root[:]))
}

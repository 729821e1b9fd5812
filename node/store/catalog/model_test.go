package catalog

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// The model test runs random histories on five catalogues, and beside each a
// reference that knows nothing of contexts and vectors: per node and key the
// set of all requests that it has heard of, and per request the set of those
// that it replaced. What is live follows from the two sets alone.

const modelNodes = 5

// event is what one request did to one key.
type event struct {
	dot     Dot
	put     bool
	digest  string // what a tag was set to
	stamp   uint64
	kills   map[Dot]bool // requests on this key that it replaced
	carried []Dot        // losers of the conflict that it ended
}

type history map[Dot]*event

// learn adds what somebody else knows of a request: of what it replaced, too.
func (h history) learn(d Dot, e *event) {
	old := h[d]
	if old == nil {
		h[d] = e
		return
	}
	for k := range e.kills {
		if !old.kills[k] {
			both := *old
			both.kills = maps.Clone(old.kills)
			maps.Copy(both.kills, e.kills)
			h[d] = &both
			return
		}
	}
}

// within is what an entry with this context says of the request: who purged a
// tombstone and made the key anew does not say any more what that replaced.
func (e *event) within(ctx Vector) *event {
	for k := range e.kills {
		if !ctx.Covers(k.real()) {
			part := *e
			part.kills = map[Dot]bool{}
			for k := range e.kills {
				if ctx.Covers(k.real()) {
					part.kills[k] = true
				}
			}
			return &part
		}
	}
	return e
}

func (h history) live() []*event {
	var out []*event
	for _, e := range h {
		dead := !e.put
		for _, o := range h {
			dead = dead || (o != e && o.kills[e.dot])
		}
		if !dead {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *event) int { return compareDots(a.dot, b.dot) })
	return out
}

// bury has nothing live but these: of what ended the others only a context is left.
func (h history) bury(live []*event) {
	for _, e := range h.live() {
		if !slices.ContainsFunc(live, func(o *event) bool { return o.dot == e.dot }) {
			h[e.dot.gone()] = &event{dot: e.dot.gone(), kills: map[Dot]bool{e.dot: true}}
		}
	}
}

func (h history) losing() []Dot {
	live := h.live()
	if len(live) < 2 {
		return nil
	}
	w := live[0]
	for _, e := range live[1:] {
		if e.stamp > w.stamp || (e.stamp == w.stamp && compareDots(e.dot, w.dot) > 0) {
			w = e
		}
	}
	var out []Dot
	for _, e := range live {
		if e.digest != w.digest {
			out = append(out, e.dot)
		}
	}
	return out
}

// mistakes are planted to see that the model finds them.
type mistakes struct {
	merge      func(here, in *entry, purged Vector) *entry
	adoptEarly bool // before the last page
	noteLate   bool // take the sender's vector after the pages
	reuseSeq   bool // a restart goes on in the old incarnation, some numbers back

	noList       bool // a receiver that misses purged tombstones gets no list
	dropUnseen   bool // a list drops also what its sender has not seen
	unsoundList  bool // a list counts although it does not add up
	dropBegun    bool // a list counts before its last part
	purgeUnseen  bool // tombstones go before all of their context was seen
	forgetPurged bool // what was purged is not taken over with the vector
	keepVector   bool // a store that lost rows goes on with its vector
	dropSilently bool // a store that dropped its vector gives no number for what it has
	leaveEarly   bool // a site leaves before anybody covers what it has
	leaveToNew   bool // or when one covers it that has not everything itself
	memberEarly  bool // a site that came in is a member before it has what others have
	countLow     bool // what never left a node is counted from what was told last

	ordered func(*strongView, Ordered) Ordered // what a node takes for ordered by a switch
	blind   bool                               // a site writes over words that its control state has not heard of

	ruleMistakes
}

// strong: only histories with strong tags can find it.
func (m mistakes) strong() bool { return m.ordered != nil || m.blind }

type lateDelivery struct {
	page Page
	keys []entryKey
	snap []history
}

type model struct {
	ctx      context.Context
	rng      *rand.Rand
	bad      mistakes
	cats     [modelNodes]*Catalog
	clocks   [modelNodes]*clock
	pid      identity.ProjectID
	compared map[entryKey][]*event // siblings that the list of the exchange under way was compared with
	seen     [modelNodes]map[entryKey]history
	expect   [modelNodes]map[string]bool // conflict rows, by "repo tag dot"
	late     []lateDelivery
	trouble  bool                           // purges, lost rows, old disks, nodes gone and sites that leave
	away     [modelNodes]bool               // gone for ever, or not a member site now
	gone     [modelNodes]bool               // for ever
	restored [modelNodes]bool               // its disk was put back, or lost rows: it may not know what it told of
	leaving  [modelNodes]bool               // it gives what it has, takes no writes and is sent nothing
	syncing  [modelNodes]*takingIn          // it is not a full member yet
	words    [modelNodes][modelNodes]Unseen // what the first knows of the second's requests by its word
	copies   [modelNodes]*diskCopy          // what a disk may be put back to
	owner    map[Dot]int                    // who reports that a request lost
	letGo    [modelNodes]map[Dot]bool       // what nodes knew that left
	owed     map[Dot]bool                   // acknowledged, and nothing happened that may lose it
	purges   int
	lost     int
	teller   told // of the exchange under way
	digests  map[string]digest.Digest
	requests int
	rules    ruleState

	doing   string                           // what is being done to a node, by the rule that says what comes of it
	prior   [modelNodes]map[entryKey]history // what it knew before, of keys that pages brought since it was compared
	highest map[identity.Incarnation]uint64  // number given so far
	left    map[Dot]int                      // only this node had the request, and left
}

// fleet is five catalogues that many histories use, each with its own project.
type fleet struct {
	cats   [modelNodes]*Catalog
	clocks [modelNodes]*clock
}

func newFleet(t testing.TB, bad mistakes) *fleet {
	f := &fleet{}
	for i := range f.cats {
		f.clocks[i] = newClock()
		// Clocks are wrong by up to some hours: no outcome may depend on them.
		f.clocks[i].at = f.clocks[i].at.Add(time.Duration(i*i) * 37 * time.Minute)
		f.cats[i] = openMemory(t, Options{Now: f.clocks[i].now})
		if bad.merge != nil {
			f.cats[i].merge = bad.merge
		}
		if bad.purgeUnseen {
			f.cats[i].seenAll = func(Vector, Vector) bool { return true }
		}
		if bad.unsoundList {
			f.cats[i].sound = func(Check, Check) bool { return true }
		}
		if bad.reuseSeq {
			inc, c := identity.NewIncarnation(), f.cats[i]
			c.incarnate = func() (identity.Incarnation, uint64) { return inc, max(c.seq, 3) - 3 }
		}
	}
	return f
}

func (f *fleet) run(ctx context.Context, seed uint64, steps int, bad mistakes) error {
	if bad.strong() || seed%4 == 0 {
		if err := f.runStrong(ctx, seed, 2*steps, bad); err != nil || bad.strong() {
			return err
		}
	}
	m := &model{
		ctx: ctx, rng: rand.New(rand.NewPCG(seed, 1)), bad: bad, cats: f.cats, clocks: f.clocks,
		pid: identity.NewProjectID(), digests: map[string]digest.Digest{}, owed: map[Dot]bool{}, owner: map[Dot]int{}, trouble: seed%2 == 1,
		highest: map[identity.Incarnation]uint64{}, left: map[Dot]int{},
	}
	for i := range m.seen {
		m.seen[i], m.expect[i], m.letGo[i] = map[entryKey]history{}, map[string]bool{}, map[Dot]bool{}
	}
	if err := m.beginRules(); err != nil {
		return err
	}
	for step := range steps {
		if err := m.step(); err != nil {
			return fmt.Errorf("seed %d, step %d: %w", seed, step, err)
		}
		if err := m.tell(); err != nil {
			return fmt.Errorf("seed %d, step %d: %w", seed, step, err)
		}
	}
	if err := m.converge(); err != nil {
		return fmt.Errorf("seed %d, at the end: %w", seed, err)
	}
	if err := m.endProject(); err != nil {
		return fmt.Errorf("seed %d, after it: %w", seed, err)
	}
	return nil
}

var (
	modelRepos = []string{"app", "app/web"}
	modelTags  = []string{"latest", "1.0", "1.1"}
	modelNames = []string{"a", "b", "c", "d", "i"} // i is an index of a and b
)

func (m *model) pick(from []string) string { return from[m.rng.IntN(len(from))] }

func (m *model) put(repo, name string, tags ...string) Put {
	p := put(m.pid, repo, name+" of "+repo+m.pid.String(), tags...)
	switch name {
	case "i":
		for _, child := range []string{"a", "b"} {
			p.Refs = append(p.Refs, Ref{Digest: m.put(repo, child).Digest, Size: 402, Kind: RefManifest})
		}
	case "c":
		p.Subject, p.ArtifactType = m.put(repo, "a").Digest, "application/vnd.test.sbom"
	}
	m.digests[repo+" "+name] = p.Digest
	return p
}

func (m *model) step() error {
	if err := m.ruleStep(m.member()); err != nil {
		return err
	}
	n := m.member()
	m.clocks[n].at = m.clocks[n].at.Add(time.Duration(m.rng.IntN(3)) * time.Millisecond)
	switch r := m.rng.IntN(100); {
	case r < 44 && m.leaving[n]:
		return m.leave(n)
	case r < 38:
		return m.write(n)
	case r < 44:
		return m.burst(n)
	case r < 48:
		return m.cats[n].restart(m.ctx)
	case r < 54:
		return m.deliverLate()
	case r < 70 && m.trouble:
		return m.misfortune(n)
	default:
		to := m.member()
		if to == n {
			return nil
		}
		return m.exchange(n, to)
	}
}

func (m *model) entry(n int, k entryKey) (*entry, error) {
	var e *entry
	err := m.cats[n].view(func(r reader) (err error) { e, err = r.entry(m.pid, k); return err })
	if e == nil {
		e = &entry{}
	}
	return e, err
}

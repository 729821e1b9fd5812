package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
	"github.com/portolan/portolan/transfer/rules"
)

const (
	// maxLabelled is how many manifests' annotations are remembered: they never
	// change, and reading them means reading the manifest. About 500 bytes each.
	maxLabelled = 20_000
	// maxRoots bounds the walk from a manifest to what takes it along. A scan comes to
	// each artifact by what is missing of it, by the same walk.
	maxRoots = 1000
)

// book is the rules with all that follows from them, for one state of rules and
// sites. It is made anew when these change, and not for other edits.
type book struct {
	set   *rules.Set
	rules []state.Rule
	sites []state.Site
	site  string
	seen  atomic.Pointer[state.View] // the last view that it was found to be of

	mu       sync.Mutex
	projects map[identity.ProjectID]bookPage
}

// bookPage is what holds for one project here.
type bookPage struct {
	version uint64 // of the project's record
	here    *rules.Project
}

// isOf reports whether the book still holds.
func (b *book) isOf(all []state.Rule, sites []state.Site) bool {
	return slices.EqualFunc(b.rules, all, func(x, y state.Rule) bool { return x.ID == y.ID && x.Version == y.Version }) &&
		slices.EqualFunc(b.sites, sites, func(x, y state.Site) bool {
			return x.ID == y.ID && x.Version == y.Version && x.Away() == y.Away()
		})
}

// book gives the rules as the view has them.
func (r *Reconciler) book(v *state.View) *book {
	old := r.rules.Load()
	if old != nil && old.seen.Load() == v {
		return old
	}
	all, sites := v.AllRules(), v.ContentSites()
	if old != nil && old.isOf(all, sites) {
		old.seen.Store(v)
		return old
	}
	b := &book{set: rules.Compile(all, sites), rules: all, sites: sites, site: r.cfg.Site, projects: map[identity.ProjectID]bookPage{}}
	b.seen.Store(v)
	r.rules.Store(b)
	return b
}

// here gives the rules that hold for a project at this site.
func (b *book) here(p state.Project) *rules.Project {
	b.mu.Lock()
	defer b.mu.Unlock()
	page, ok := b.projects[p.PID]
	if !ok || page.version != p.Version {
		page = bookPage{p.Version, b.set.Project(p).At(b.site)}
		b.projects[p.PID] = page
	}
	return page.here
}

// forget is for a project that is not for this site any more.
func (b *book) forget(pid identity.ProjectID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.projects, pid)
}

// relevant gives the rules that hold for a project here; false: the project is
// unknown, or not for this site.
func (r *Reconciler) relevant(pid identity.ProjectID) (*rules.Project, bool) {
	view := r.cfg.State.View()
	p, ok := view.ProjectByPID(pid)
	if !ok || p.Deleted() || !view.MayRest(p, r.cfg.Site) {
		return nil, false
	}
	return r.book(view).here(p), true
}

// artifact gives what rules look at, as far as these rules do.
func (r *Reconciler) artifact(p *rules.Project, m catalog.ManifestInfo) (rules.Artifact, error) {
	a := rules.Artifact{Repository: m.Repo, Home: m.Home, Type: m.ArtifactType, MediaType: m.MediaType}
	var err error
	if p.NeedTags() {
		if a.Tags, err = r.tagsFor(p.PID, m, p); err != nil {
			return a, err
		}
	}
	if p.NeedLabels() {
		a.Labels, err = r.annotations(p.PID, m)
	}
	return a, err
}

// tagsFor gives those of a manifest's tags that rules can tell apart, however many
// it has.
func (r *Reconciler) tagsFor(pid identity.ProjectID, m catalog.ManifestInfo, ps ...*rules.Project) ([]string, error) {
	tell := rules.NewTeller(ps...)
	err := r.cat.EachTagOf(pid, m.Repo, m.Digest, tell.Hear)
	return tell.Tags(), err
}

// annotations gives those of a manifest. One whose bytes are not here yet has
// none: it is looked at again when they come.
func (r *Reconciler) annotations(pid identity.ProjectID, m catalog.ManifestInfo) (map[string]string, error) {
	if have, ok := r.labels.Get(m.Digest); ok {
		return have, nil
	}
	body, here, err := r.cat.ContentIn(pid, m.Digest)
	if err == nil && !here && m.Size > catalog.MaxInlineManifest {
		body, here, err = r.largeManifest(pid, m.Digest)
	}
	if err != nil || !here {
		return nil, err
	}
	var doc struct {
		Annotations map[string]string `json:"annotations"`
	}
	// What is no JSON has no annotations: it may be an artifact of any kind.
	_ = json.Unmarshal(body, &doc)
	r.labels.Add(m.Digest, doc.Annotations)
	return doc.Annotations, nil
}

func (r *Reconciler) largeManifest(pid identity.ProjectID, d digest.Digest) ([]byte, bool, error) {
	if proven, err := r.cat.Proven(pid, d); err != nil || !proven {
		return nil, false, err
	}
	f, err := r.cfg.Store.Open(context.Background(), d)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("manifest %s: %w", d, err)
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, manifest.MaxBytes))
	return body, err == nil, err
}

// demand says at which terms rules want a manifest here.
func (r *Reconciler) demand(p *rules.Project, m catalog.ManifestInfo) (rules.Demand, error) {
	if p.Empty() {
		return rules.Demand{}, nil
	}
	a, err := r.artifact(p, m)
	if err != nil {
		return rules.Demand{}, err
	}
	return p.Demand(a, r.cfg.Site), nil
}

// roots finds the artifacts wanted here that take a manifest along: those that
// name it as a child, or that it refers to as its subject, and so on upwards;
// itself if it is wanted. fn returns false to end.
func (r *Reconciler) roots(p *rules.Project, m catalog.ManifestInfo, fn func(catalog.ManifestInfo, rules.Demand) bool) error {
	seen := map[digest.Digest]bool{m.Digest: true}
	todo := []catalog.ManifestInfo{m}
	for len(todo) > 0 {
		m := todo[0]
		todo = todo[1:]
		d, err := r.demand(p, m)
		if err != nil {
			return err
		}
		if !d.None() && !fn(m, d) {
			return nil
		}
		above := []digest.Digest{m.Subject}
		parents, err := r.cat.ParentsIn(p.PID, m.Repo, m.Digest, maxRoots)
		if err != nil {
			return err
		}
		for _, up := range parents {
			above = append(above, up.Digest)
		}
		for _, d := range above {
			if d == "" || seen[d] {
				continue
			}
			if len(seen) >= maxRoots {
				r.rootsCut.Do(func() {
					r.log.Warn("a manifest belongs to more artifacts than are looked at: rules may want it for one that was not (this is said once)",
						"pid", p.PID, "repository", m.Repo, "digest", m.Digest, "looked_at", maxRoots)
				})
				break
			}
			seen[d] = true
			info, err := r.cat.Manifest(p.PID, m.Repo, d)
			if errors.Is(err, catalog.ErrNotFound) {
				continue // when it comes it takes this along
			}
			if err != nil {
				return err
			}
			todo = append(todo, info)
		}
	}
	return nil
}

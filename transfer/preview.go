package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
)

const (
	// maxPreviewBlobs bounds the blobs that a preview counts, and with them its
	// memory: some 60 MiB. Beyond it the answer says that it is a part.
	maxPreviewBlobs = 1_000_000
	// maxPreviewNames bounds the names in an answer.
	maxPreviewNames = 1000
)

// PreviewQuestion asks what a rule would move.
type PreviewQuestion struct {
	// Rule as it would be; its ID is that of the rule that it replaces, 0: of none.
	Rule state.Rule
	// Names is how many artifacts are named.
	Names int
	// For bounds the answer's time, about.
	For time.Duration
}

// PreviewSite is what the rule would bring to one site that is not wanted there
// now.
type PreviewSite struct {
	Site      string
	Artifacts int
	// Blobs and Bytes would move, HeldBlobs and HeldBytes are there already; each
	// blob is counted once. What other sites hold is known by their feeds, as far
	// as this site has read them.
	Blobs, HeldBlobs int
	Bytes, HeldBytes int64
	// Refused artifacts are named by the rule for this site, where their project
	// may not rest.
	Refused int
	// Dropped artifacts are wanted there now, and by no rule then. Their copies
	// stay.
	Dropped int
}

// PreviewAnswer is what a rule would move.
type PreviewAnswer struct {
	Matched   int // artifacts that the rule's filters match
	Artifacts int // of these, those that are new at some site
	Looked    int // manifests that were looked at
	Sites     []PreviewSite
	Names     []string // the first artifacts that would move
	// Partial: there was no time or room for the rest; the numbers are lower bounds.
	Partial bool
	// Unseen projects match, and may not rest at this site: ask elsewhere.
	Unseen []Unseen
}

// preview is one Preview.
type preview struct {
	r         *Reconciler
	q         PreviewQuestion
	view      *state.View
	now, then *rules.Set
	alone     *rules.Set // the new rule, and no other
	end       time.Time
	out       PreviewAnswer
	at        map[string]*PreviewSite
	index     map[string]int // of a site in the masks of blobs
	blobs     map[uint64]uint64
}

// maxPreviewSites is how many sites' blobs are told apart: the bits of a mask.
const maxPreviewSites = 64

// Preview compares the rules as they are with what they would be, artifact by
// artifact, by this site's catalogue. It changes nothing.
func (r *Reconciler) Preview(ctx context.Context, q PreviewQuestion) (PreviewAnswer, error) {
	view := r.cfg.State.View()
	sites := view.ContentSites()
	p := &preview{r: r, q: q, view: view, end: r.cfg.Now().Add(q.For), now: r.book(view).set,
		at: map[string]*PreviewSite{}, index: map[string]int{}, blobs: map[uint64]uint64{}}
	then := slices.DeleteFunc(view.AllRules(), func(x state.Rule) bool { return x.ID == q.Rule.ID })
	p.then = rules.Compile(append(then, q.Rule), sites)
	p.alone = rules.Compile([]state.Rule{q.Rule}, sites).Alone()
	if len(sites) > maxPreviewSites {
		return p.out, fmt.Errorf("a preview tells %d sites apart, and there are %d", maxPreviewSites, len(sites))
	}
	for i, s := range sites {
		p.index[s.Name] = i
		p.at[s.Name] = &PreviewSite{Site: s.Name}
	}
	for pr := range view.Projects() {
		if p.out.Partial {
			break
		}
		if err := p.project(ctx, pr); err != nil {
			return p.out, err
		}
	}
	for _, s := range sites {
		if v := *p.at[s.Name]; v != (PreviewSite{Site: s.Name}) {
			p.out.Sites = append(p.out.Sites, v)
		}
	}
	return p.out, ctx.Err()
}

func (p *preview) project(ctx context.Context, pr state.Project) error {
	rs := previewRules{now: p.now.Project(pr), then: p.then.Project(pr), alone: p.alone.Project(pr)}
	if rs.alone.Empty() && rs.now.Equal(rs.then) {
		return nil
	}
	if !p.view.MayRest(pr, p.r.cfg.Site) {
		p.out.Unseen = append(p.out.Unseen, Unseen{Project: pr.Name, Sites: slices.Clone(pr.Sites)})
		return nil
	}
	for repo := ""; ; {
		repos, err := p.r.cat.Repositories(pr.PID, repo, scanPage)
		if err != nil {
			return fmt.Errorf("repositories of %s: %w", pr.Name, err)
		}
		for _, repo = range repos {
			if err := p.repository(ctx, pr, rs, repo); err != nil || p.out.Partial {
				return err
			}
		}
		if len(repos) < scanPage {
			return nil
		}
	}
}

// previewRules are a project's rules as they are and as they would be, and the
// new one alone.
type previewRules struct{ now, then, alone *rules.Project }

func (p *preview) repository(ctx context.Context, pr state.Project, rs previewRules, repo string) error {
	for after := digest.Digest(""); ; {
		page, err := p.r.cat.Manifests(pr.PID, repo, after, scanPage)
		if err != nil {
			return fmt.Errorf("manifests of %s/%s: %w", pr.Name, repo, err)
		}
		for _, m := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if len(p.blobs) >= maxPreviewBlobs || !p.r.cfg.Now().Before(p.end) {
				p.out.Partial = true
				return nil
			}
			after = m.Digest
			p.out.Looked++
			if err := p.manifest(pr, rs, m); err != nil {
				return err
			}
		}
		if len(page) < scanPage {
			return nil
		}
	}
}

func (p *preview) manifest(pr state.Project, rs previewRules, m catalog.ManifestInfo) error {
	a := rules.Artifact{Repository: m.Repo, Home: m.Home, Type: m.ArtifactType, MediaType: m.MediaType}
	var err error
	if rs.now.NeedTags() || rs.then.NeedTags() {
		if a.Tags, err = p.r.tagsFor(pr.PID, m, rs.now, rs.then, rs.alone); err != nil {
			return err
		}
	}
	if rs.now.NeedLabels() || rs.then.NeedLabels() {
		if a.Labels, err = p.r.annotations(pr.PID, m); err != nil {
			return err
		}
	}
	refused := rs.alone.Refused(a)
	if len(refused) > 0 || len(rs.alone.Sites(a)) > 0 {
		p.out.Matched++
	}
	for _, site := range refused {
		p.at[site].Refused++
	}
	before, after := rs.now.Sites(a), rs.then.Sites(a)
	var fresh []string
	for _, site := range after {
		if !slices.Contains(before, site) {
			fresh = append(fresh, site)
		}
	}
	for _, site := range before {
		if !slices.Contains(after, site) {
			p.at[site].Dropped++
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	p.out.Artifacts++
	if len(p.out.Names) < min(p.q.Names, maxPreviewNames) {
		name, err := p.name(pr, m)
		if err != nil {
			return err
		}
		p.out.Names = append(p.out.Names, name)
	}
	c, err := p.r.closure(pr.PID, m.Repo, m.Digest, false)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, site := range fresh {
		p.at[site].Artifacts++
	}
	for _, b := range c.blobs {
		if err := p.blob(b, fresh); err != nil {
			return err
		}
	}
	return nil
}

// blob counts a blob at the sites for which it was not counted yet.
func (p *preview) blob(b content, fresh []string) error {
	id := xxhash.Sum64String(string(b.digest))
	var missing []string
	for _, site := range fresh {
		if p.blobs[id]&(1<<p.index[site]) == 0 {
			missing = append(missing, site)
			p.blobs[id] |= 1 << p.index[site]
		}
	}
	if len(missing) == 0 {
		return nil
	}
	held, err := p.holders(b)
	if err != nil {
		return err
	}
	for _, site := range missing {
		s := p.at[site]
		if held[site] {
			s.HeldBlobs++
			s.HeldBytes += b.size
		} else {
			s.Blobs++
			s.Bytes += b.size
		}
	}
	return nil
}

// holders gives the sites that have a blob: this one by its rows, others by
// their feeds.
func (p *preview) holders(b content) (map[string]bool, error) {
	held := map[string]bool{}
	_, err := p.r.cat.Blob(b.digest)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return nil, err
	}
	held[p.r.cfg.Site] = err == nil
	stores, err := p.r.cat.Holders(b.digest)
	if err != nil {
		return nil, err
	}
	for _, id := range stores {
		if n, ok := p.view.NodeOfStore(id); ok && n.Site != p.r.cfg.Site {
			held[n.Site] = true
		}
	}
	return held, nil
}

// name is how people call an artifact.
func (p *preview) name(pr state.Project, m catalog.ManifestInfo) (string, error) {
	tags, err := p.r.cat.TagsOf(pr.PID, m.Repo, m.Digest, 1)
	if err != nil {
		return "", err
	}
	end := "@" + m.Digest.String()
	if len(tags) > 0 {
		end = ":" + tags[0]
	}
	return pr.Name + "/" + m.Repo + end, nil
}

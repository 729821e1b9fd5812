package mesh

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

const (
	// MaxSlice bounds one wait call, below the 30 s after which common proxies
	// give up on a silent server.
	MaxSlice = 20 * time.Second
	// PollInterval is how often a waiting call asks the sites again. Each
	// question costs every site a few point reads.
	PollInterval = 500 * time.Millisecond
	// TagArrives is how long a wait gives a tag to become known here: who has
	// just pushed it elsewhere is at most about a second ahead of the catalogue.
	TagArrives = 3 * time.Second
)

// ImageQuery names an image and sites in a query.
type ImageQuery struct {
	Image string `query:"image" required:"true" minLength:"1" maxLength:"512" doc:"PROJECT/NAME:TAG or PROJECT/NAME@DIGEST"`
	Sites string `query:"sites" maxLength:"8192" doc:"Names of sites, separated by commas; wanted: those where a rule wants it or it was pushed; all if not said"`
}

type whereOut struct{ Body Where }

type waitIn struct {
	ImageQuery
	For string `query:"for" maxLength:"32" doc:"How long this call may last at most, as 10s; 20s at most" example:"10s"`
}

type waitOut struct{ Body Wait }

func (a *API) registerPlacement() {
	rest.Register(a.rest, rest.Op{ID: "where", Method: http.MethodGet, Path: "/where", Tag: "placement", Who: rest.SignedIn,
		Summary: "Which sites hold an image"}, a.where)
	rest.Register(a.rest, rest.Op{ID: "wait", Method: http.MethodGet, Path: "/wait", Tag: "placement", Who: rest.SignedIn,
		Summary: "Wait until sites hold an image; repeat it with image NAME:TAG@DIGEST, as the answer names it"}, a.wait)
}

// asked are the sites that a question is about.
type asked struct {
	names []string
	// wanted: of these only those where the image is expected.
	wanted bool
}

// wantedSites is the word for the sites where rules want an image, or where it
// was pushed.
const wantedSites = "wanted"

// prepare reads what is asked for: the image's project and the sites, by the
// control state.
func (a *API) prepare(ctx context.Context, in *ImageQuery) (image, asked, error) {
	img, err := a.open(ctx, in.Image, access.Pull)
	if err != nil {
		return img, asked{}, err
	}
	if img.tag == "" && img.digest == "" {
		img.tag = "latest" // what every client means by a bare name
	}
	var sites asked
	which := in.Sites
	if sites.wanted = which == wantedSites; sites.wanted {
		which = allSites
	}
	sites.names, err = chooseSites(a.cfg.View(), img.project, which)
	return img, sites, err
}

// resolve fills in the digest, by this node's catalogue.
func (a *API) resolve(img image) (image, error) {
	if img.digest != "" {
		return img, nil
	}
	t, err := a.cfg.Catalog.Tag(img.project.PID, img.repo, img.tag)
	img.digest = t.Digest
	return img, err
}

// unknown says that the catalogue does not have what was asked for.
func (a *API) unknown(img image, err error) error {
	switch {
	case !errors.Is(err, catalog.ErrNotFound):
		return err
	case img.digest == "":
		return rest.NotFound("site %s knows no tag %s of %s: push it, or see what there is with: portolan tag list %s",
			a.cfg.Site, img.tag, img.name(), img.name())
	default:
		return rest.NotFound("site %s knows no %s: push it, or ask a site that has it", a.cfg.Site, img)
	}
}

func (a *API) where(ctx context.Context, in *ImageQuery) (*whereOut, error) {
	img, sites, err := a.prepare(ctx, in)
	if err != nil {
		return nil, err
	}
	var w Where
	err = a.known(ctx, img.project.PID, func() (err error) {
		if img, err = a.resolve(img); err == nil {
			w, err = a.ask(ctx, img, sites)
		}
		return err
	})
	if err != nil {
		return nil, a.unknown(img, err)
	}
	return &whereOut{Body: w}, nil
}

// chooseSites reads "all" or a list of names. All are the content sites where
// the project may rest.
func chooseSites(v *state.View, p state.Project, s string) ([]string, error) {
	var content []string
	for _, site := range v.ContentSites() {
		content = append(content, site.Name)
	}
	names := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) == 0 || slices.Equal(names, []string{allSites}) {
		return slices.DeleteFunc(content, func(s string) bool { return !v.MayRest(p, s) }), nil
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, n := range names {
		if _, ok := v.Site(n); !ok {
			return nil, noSite(v, n)
		}
		if !slices.Contains(content, n) {
			return nil, rest.Invalid("site %s holds no content: leave it out", n)
		}
		if !v.MayRest(p, n) {
			return nil, rest.Invalid("project %s may not rest at site %s, only at %s", p.Name, n, strings.Join(p.Sites, ", "))
		}
	}
	return names, nil
}

func noSite(v *state.View, name string) error {
	var names []string
	for _, s := range v.Sites() {
		names = append(names, s.Name)
	}
	return rest.NotFound("there is no site %q; the sites are %s", name, strings.Join(names, ", "))
}

func (a *API) ask(ctx context.Context, img image, sites asked) (Where, error) {
	w := Where{Image: img.String(), Repository: img.name(), Tag: img.tag, Digest: img.digest, Sites: []Presence{}}
	if len(sites.names) == 0 {
		return w, nil
	}
	ps, err := a.cfg.Placement.Presence(ctx, Question{PID: img.project.PID, Repository: img.repo, Digest: img.digest, Tag: img.tag, Sites: sites.names})
	if err != nil {
		return w, err
	}
	if sites.wanted {
		ps = slices.DeleteFunc(ps, func(p Presence) bool { return !p.Covered })
	}
	slices.SortFunc(ps, func(a, b Presence) int { return strings.Compare(a.Site, b.Site) })
	w.Sites = append(w.Sites, ps...)
	return w, nil
}

func (a *API) wait(ctx context.Context, in *waitIn) (*waitOut, error) {
	slice := MaxSlice
	if in.For != "" {
		d, err := time.ParseDuration(in.For)
		if err != nil || d < 0 {
			return nil, rest.Invalid("%q is not how long to wait: write it as 10s", in.For)
		}
		slice = min(d, MaxSlice)
	}
	img, sites, err := a.prepare(ctx, &in.ImageQuery)
	if err != nil {
		return nil, err
	}
	over := time.NewTimer(slice)
	defer over.Stop()
	arrives := time.NewTimer(min(slice, TagArrives))
	defer arrives.Stop()
	end := a.cfg.Now().Add(slice)
	refreshed := false
	var last *waitOut
	for {
		var out *waitOut
		var stop <-chan time.Time
		w := Where{}
		if img, err = a.resolve(img); err == nil {
			w, err = a.askUntil(ctx, img, sites, end, last != nil)
		}
		switch {
		case last != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return last, nil // a site that hangs must not make the call longer
		case errors.Is(err, catalog.ErrNotFound):
			stop = arrives.C
			if !refreshed && a.cfg.Refresh != nil {
				refreshed = true
				if _, err := a.cfg.Refresh(ctx, img.project.PID); err == nil {
					continue
				}
			}
		case err != nil:
			return nil, err
		default:
			out, stop = &waitOut{Body: judge(w)}, over.C
			if out.Body.Done || len(out.Body.Uncovered) > 0 {
				return out, nil
			}
			last = out
		}
		again := time.NewTimer(a.cfg.Poll)
		select {
		case <-again.C:
		case <-stop:
			again.Stop()
			if out == nil {
				return nil, a.unknown(img, err)
			}
			return out, nil
		case <-ctx.Done():
			again.Stop()
			return nil, ctx.Err()
		}
	}
}

// askUntil is ask; if there is an answer already, a new one is worth no more
// time than until end.
func (a *API) askUntil(ctx context.Context, img image, sites asked, end time.Time, bounded bool) (Where, error) {
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, end.Sub(a.cfg.Now()))
		defer cancel()
	}
	return a.ask(ctx, img, sites)
}

// Keeps says whether the site has all of the artifact and will keep it: a copy
// that is there only because somebody pulled it may go at any moment.
func (p Presence) Keeps() bool { return p.Complete && !p.Evictable }

// judge says whether all sites are content, and which never will be.
func judge(w Where) Wait {
	// Where nobody is to have it, it will never be.
	out := Wait{Where: w, Done: len(w.Sites) > 0}
	for _, p := range w.Sites {
		out.Done = out.Done && p.Keeps()
		if !p.Keeps() && !p.Covered {
			out.Uncovered = append(out.Uncovered, p.Site)
		}
	}
	return out
}

package mesh

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/registryapi/rest"
)

// LabelRequest changes labels of a site.
type LabelRequest struct {
	Set       map[string]string `json:"set,omitempty" doc:"Labels to set; a value may be empty"`
	Remove    []string          `json:"remove,omitempty" doc:"Keys to take away"`
	IfVersion uint64            `json:"resource_version,omitempty" doc:"Refuse with 409 if the site has another version; 0: any"`
}

type labelIn struct {
	Name string `path:"name" maxLength:"63"`
	rest.Condition
	Body LabelRequest
}

func (a *API) registerLabels() {
	rest.Register(a.rest, rest.Op{ID: "label-site", Method: http.MethodPost, Path: "/sites/{name}/labels", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Set and take away labels of a site, by which rules choose sites"}, a.labelSite)
}

func (a *API) labelSite(ctx context.Context, in *labelIn) (*rest.Object[Site], error) {
	v := a.cfg.View()
	s, ok := v.Site(in.Name)
	if !ok {
		return nil, noSite(v, in.Name)
	}
	want, err := in.Expect(s.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	m := &command.SiteLabel{Id: s.ID, Remove: in.Body.Remove, IfVersion: want.Version}
	for _, key := range slices.Sorted(maps.Keys(in.Body.Set)) {
		m.Set = append(m.Set, &command.Label{Key: key, Value: in.Body.Set[key]})
	}
	if _, err := a.edit(ctx, want, m); err != nil {
		return nil, err
	}
	v = a.cfg.View()
	if s, ok = v.SiteByID(s.ID); !ok {
		return nil, rest.Conflict("site %s was removed at the moment it was changed", in.Name)
	}
	return rest.ObjectOf(s.ID, s.Version, a.site(v, s)), nil
}

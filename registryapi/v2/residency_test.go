package v2

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// join adds a site with a node to the control state.
func (s *site) join(name string) {
	s.t.Helper()
	id, _, err := identity.LoadOrCreate(s.t.TempDir())
	if err != nil {
		s.t.Fatal(err)
	}
	hash := [32]byte{byte(len(name)), name[0], name[1]}
	token := s.apply(&command.TokenCreate{Site: name, SecretHash: hash[:], ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()})
	pub, sig := id.BoxKey()
	storeID := identity.NewStoreID()
	s.apply(&command.NodeJoin{TokenId: token, SecretHash: hash[:], Site: name,
		Node: &command.Node{Id: id.ID[:], BoxKey: pub[:], BoxSignature: sig, StoreId: storeID[:], Host: "127.0.0.1", GossipPort: 7946, ControlPort: 7947, DataPort: 7948,
			RegistryUrl: "http://127.0.0.1:5001", Level: command.Level, Version: "test"}})
}

// TestResidency_Steps: what a site answers while it leaves a project, is outside, and
// takes it in again.
func TestResidency_Steps(t *testing.T) {
	s := newSite(t)
	s.join("nyc")
	s.join("sgp")
	p := s.project("prod")
	config, layer := []byte("{}"), []byte("layer")
	s.push("prod/app", config)
	d := s.push("prod/app", layer)
	m := image(config, layer)
	put := func() exchange {
		return s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(m), "Content-Type", imageType)
	}
	put().want(t, http.StatusCreated)
	says := func(e exchange, status int, words ...string) {
		t.Helper()
		e.want(t, status)
		for _, w := range words {
			if !strings.Contains(string(e.body), w) {
				t.Errorf("%s %s: %q is not in %s", e.Request.Method, e.Request.URL, w, e.body)
			}
		}
	}

	s.apply(&command.ProjectSites{Id: p.ID, Sites: []string{"nyc", "sgp"}})
	s.do("guest", "GET", "/v2/prod/app/manifests/1", nil).want(t, http.StatusOK)
	s.do("guest", "GET", "/v2/prod/app/blobs/"+d.String(), nil).want(t, http.StatusOK)
	for _, e := range []exchange{
		put(),
		s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil),
		s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil),
		// Another site may have it: never "not found".
		s.do("guest", "GET", "/v2/prod/app/manifests/2", nil),
		s.do("guest", "GET", "/v2/prod/app/blobs/"+digest.FromString("x").String(), nil),
	} {
		says(e, http.StatusForbidden, "DENIED", "leaves site fra", "nyc, sgp")
	}
	says(s.do("stranger", "GET", "/v2/prod/app/manifests/1", nil), http.StatusForbidden)
	if e := s.do("stranger", "GET", "/v2/prod/app/manifests/1", nil); strings.Contains(string(e.body), "sgp") {
		t.Errorf("a stranger learns where the project is: %s", e.body)
	}

	s.apply(&command.ProjectSiteDone{Id: p.ID, Site: "fra", Left: true})
	for _, e := range []exchange{put(), s.do("guest", "GET", "/v2/prod/app/manifests/1", nil), s.do("guest", "GET", "/v2/prod/app/tags/list", nil)} {
		says(e, http.StatusForbidden, "DENIED", "not kept at site fra", "nyc, sgp")
	}

	s.apply(&command.ProjectSites{Id: p.ID})
	for _, e := range []exchange{put(), s.do("guest", "GET", "/v2/prod/app/manifests/1", nil), s.do("guest", "GET", "/v2/prod/app/manifests/never", nil)} {
		says(e, http.StatusServiceUnavailable, "UNAVAILABLE", "takes project prod in")
		if e.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	s.apply(&command.ProjectSiteDone{Id: p.ID, Site: "fra"})
	put().want(t, http.StatusCreated)
	s.do("guest", "GET", "/v2/prod/app/manifests/never", nil).want(t, http.StatusNotFound)
}

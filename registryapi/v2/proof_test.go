package v2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

// An entry of another site that names what is here for another project gives its
// own project's readers nothing of it.
func TestBlob_NamedByAnEntryAlone(t *testing.T) {
	s := newSite(t)
	secret := bytes.Repeat([]byte("secret "), 20_000)
	d := digest.FromBytes(secret)
	s.push("closed/app", []byte("{}"))
	s.push("closed/app", secret)
	m := image([]byte("{}"), secret)
	s.do("dev", "PUT", "/v2/closed/app/manifests/1", bytes.NewReader(m), "Content-Type", imageType).want(t, 201)

	prod, ok := s.state.View().Project("prod")
	if !ok {
		t.Fatal("no project prod")
	}
	cat := s.store.Catalog()
	put := catalog.Put{PID: prod.PID, Repo: "app", Digest: digest.FromBytes(m), MediaType: imageType, Size: int64(len(m)),
		Refs: []catalog.Ref{{Digest: d, Size: int64(len(secret)), Kind: catalog.RefBlob}}, Tags: []string{"1"}, Home: "mal"}
	if _, err := cat.PutManifest(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	blob := "/v2/prod/app/blobs/" + d.String()
	for _, r := range [][2]string{{"GET", blob}, {"HEAD", blob}, {"GET", "/v2/prod/app/manifests/1"}, {"GET", "/v2/prod/app/manifests/" + put.Digest.String()}} {
		if e := s.do("guest", r[0], r[1], nil).want(t, 404); strings.Contains(string(e.body), "secret ") {
			t.Errorf("%s %s gives it", r[0], r[1])
		}
	}
	for _, from := range []string{"", "&from=prod/app"} {
		s.do("dev", "POST", "/v2/prod/web/blobs/uploads/?mount="+d.String()+from, nil).want(t, 202)
	}
	s.do("guest", "GET", "/v2/prod/web/blobs/"+d.String(), nil).want(t, 404)
	// A manifest that relies on it is not accepted, and its size is not told.
	s.push("prod/app", []byte("{}"))
	for _, layer := range []string{descriptor("application/vnd.oci.image.layer.v1.tar", secret), strings.Replace(descriptor("application/vnd.oci.image.layer.v1.tar", secret), fmt.Sprint(len(secret)), "5", 1)} {
		m := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, imageType, descriptor("application/vnd.oci.image.config.v1+json", []byte("{}")), layer)
		if e := s.do("dev", "PUT", "/v2/prod/app/manifests/2", bytes.NewReader(m), "Content-Type", imageType).want(t, 400); strings.Contains(string(e.body), fmt.Sprint(len(secret))) {
			t.Errorf("its size is told: %s", e.body)
		}
	}
	// Its own project reads it, and who may read both mounts it.
	s.do("guest", "GET", "/v2/closed/app/blobs/"+d.String(), nil).want(t, 200)
	s.do("dev", "POST", "/v2/prod/app/blobs/uploads/?mount="+d.String()+"&from=closed/app", nil).want(t, 201)
	s.do("guest", "GET", blob, nil).want(t, 200)
	// Nor does a lease make it another project's.
	lib, _ := s.state.View().Project("library")
	if err := cat.Lease(t.Context(), d, catalog.Lease{PID: lib.PID, Repo: "odd", Until: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	s.do("admin", "GET", "/v2/library/odd/blobs/"+d.String(), nil).want(t, 404)
}

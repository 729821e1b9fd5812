package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	registrymiddleware "github.com/distribution/distribution/v3/registry/middleware/registry"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // App wants a driver; nothing is stored there
	"github.com/sirupsen/logrus"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/registryapi/apitest"
	v2 "github.com/portolan/portolan/registryapi/v2"
)

// side is one of the two that are compared.
type side struct {
	url   string
	saved map[string]string // Locations, by the names that rows give them
}

// sides starts our handlers and distribution's, each on a store of its own.
func sides(t *testing.T) (ours, theirs *side) {
	t.Helper()
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	logrus.SetOutput(io.Discard)
	mesh := apitest.New(t)
	for _, name := range []string{"prod", "shut"} {
		pid := identity.NewProjectID()
		if _, err := mesh.Propose(t.Context(), "system", &command.ProjectCreate{ProjectId: pid[:], Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *store.Store {
		st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Identity: mesh.Identity, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
		return st
	}
	serve := func(h http.Handler) *side {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		return &side{url: srv.URL, saved: map[string]string{}}
	}

	api, err := v2.New(v2.Config{View: mesh.State.View, Access: mesh.Access, Store: open(), Site: mesh.Site})
	if err != nil {
		t.Fatal(err)
	}
	ours = serve(api)

	ns := &Namespace{Store: open(), View: mesh.State.View, Site: mesh.Site}
	err = registrymiddleware.Register("portolan", func(context.Context, distribution.Namespace, driver.StorageDriver, map[string]any) (distribution.Namespace, error) {
		return ns, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := &configuration.Configuration{
		Storage:    configuration.Storage{"inmemory": {}, "delete": {"enabled": true}, "maintenance": {"uploadpurging": map[any]any{"enabled": false}}},
		Middleware: map[string][]configuration.Middleware{"registry": {{Name: "portolan"}}},
	}
	cfg.Catalog.MaxEntries, cfg.Tags.MaxTags, cfg.HTTP.Secret = 1000, 1000, "the same for all"
	theirs = serve(handlers.NewApp(t.Context(), cfg))
	return ours, theirs
}

// answer is what is compared.
type answer map[string]string

// compared are the headers that clients act upon.
var compared = []string{
	"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "Docker-Content-Digest", "Etag", "Location", "Range", "Link", "Allow",
	"Oci-Subject", "Oci-Filters-Applied", "Oci-Tag", "Docker-Distribution-Api-Version", "Cache-Control", "Vary", "Warning",
}

var session = regexp.MustCompile(`/blobs/uploads/.+$`)

func (s *side) ask(ctx context.Context, r request) (answer, error) {
	path := r.path
	for name, at := range s.saved {
		path = strings.ReplaceAll(path, "{"+name+"}", at)
	}
	if r.query != "" {
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		path += sep + r.query
	}
	if !strings.HasPrefix(path, "http") {
		path = s.url + path
	}
	req, err := http.NewRequestWithContext(ctx, r.method, path, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth("admin", apitest.AdminPassword) // App asks nobody who he is
	for i := 0; i+1 < len(r.header); i += 2 {
		req.Header.Add(r.header[i], r.header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if r.save != "" {
		at, err := resp.Location()
		if err != nil {
			return nil, fmt.Errorf("%s %s: %s: %w", r.method, path, resp.Status, err)
		}
		s.saved[r.save] = at.String()
	}
	a := answer{"status": fmt.Sprint(resp.StatusCode), "body": strings.TrimSpace(string(body))}
	for _, name := range compared {
		a[name] = strings.ReplaceAll(strings.Join(resp.Header.Values(name), ", "), s.url, "")
	}
	a["Location"] = session.ReplaceAllString(a["Location"], "/blobs/uploads/…")
	if link, ok := strings.CutSuffix(a["Link"], `>; rel="next"`); ok {
		if u, err := url.Parse(link[1:]); err == nil {
			a["Link"] = u.Path + "?" + u.Query().Encode()
		}
	}
	if resp.StatusCode >= 400 {
		a["body"], a["Content-Length"] = codes(body), ""
	}
	if a["Content-Type"] == "multipart/byteranges" || strings.HasPrefix(a["Content-Type"], "multipart/byteranges;") {
		a["Content-Type"], a["body"] = "multipart/byteranges", "" // boundaries are random
	}
	return a, nil
}

// codes are an error's codes, each once: words and numbers of them are free.
func codes(body []byte) string {
	var doc struct {
		Errors []struct{ Code string }
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&doc); err != nil {
		return "no JSON"
	}
	var out []string
	for _, e := range doc.Errors {
		if !slices.Contains(out, e.Code) {
			out = append(out, e.Code)
		}
	}
	if dec.More() {
		out = append(out, "and more JSON behind it")
	}
	return strings.Join(out, " ")
}

// TestAnswers fails if the two could not be compared, or never agreed; what they
// differ in is printed.
func TestAnswers(t *testing.T) {
	ours, theirs := sides(t)
	defer http.DefaultClient.CloseIdleConnections()
	seen := map[int]bool{}
	same, explained, fresh := 0, 0, 0
	list := requests()
	for _, r := range list {
		a, err := ours.ask(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: ours: %v", r.name, err)
		}
		b, err := theirs.ask(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: distribution's: %v", r.name, err)
		}
		agree := true
		for _, field := range append([]string{"status", "body"}, compared...) {
			if a[field] == b[field] {
				continue
			}
			agree = false
			why := "NEW: not explained in differences.go"
			if i := explain(r, field, a, b); i >= 0 {
				seen[i] = true
				explained++
				why = differences[i].why
			} else {
				fresh++
			}
			t.Logf("%s (%s %s): %s\n    ours   %s\n    theirs %s\n    %s", r.name, r.method, r.path, field, clip(a[field]), clip(b[field]), why)
		}
		if agree {
			same++
		}
	}
	for i, d := range differences {
		if !seen[i] {
			t.Logf("gone: nothing differs any more by %q (%s)", d.why, d.field)
		}
	}
	t.Logf("%d requests: %d answered the same in all; %d differences explained, %d new", len(list), same, explained, fresh)
	if same == 0 {
		t.Error("no answer is the same: the two were not asked the same")
	}
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

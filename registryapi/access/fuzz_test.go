package access

import (
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

// FuzzCanonical_LikeReference compares with the grammar that all clients share.
func FuzzCanonical_LikeReference(f *testing.F) {
	m := newMesh(f)
	a := m.access()
	for _, s := range []string{"alpine", "a/b", "a__b/c--d", "a___b", "a..b", "a.b/c", "0/0", "a/b/", "/a", "A", "a\n", "localhost/a", "a:b/c", strings.Repeat("a", 255), "docker.io/library/x", "ä"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r := get("/v2/", "", "")
		project, repo, err := a.Canonical(r, name)
		if err == nil {
			if _, err := reference.WithName("host.example/" + project + "/" + repo); err != nil {
				t.Fatalf("%q is taken as %s/%s, which no client can name: %v", name, project, repo, err)
			}
			return
		}
		first, _, _ := strings.Cut(name, "/")
		if strings.ContainsAny(first, ".:") || strings.ToLower(name) != name || len(DefaultProject)+1+len(name) > MaxNameBytes {
			return // may be a host; the grammar for hosts is wider
		}
		if _, rerr := reference.WithName("host.example/" + name); rerr == nil {
			t.Fatalf("%q is refused (%v), clients can name it", name, err)
		}
	})
}

// FuzzForwarded sends headers of proxies: from others they change nothing, and
// from a trusted one they give a URL that is one, and an address that is no
// proxy's unless all are.
func FuzzForwarded(f *testing.F) {
	m := newMesh(f)
	trusting, other := m.access("192.0.2.0/24"), m.access()
	for _, c := range [][3]string{{"https", "reg.example.org", "198.51.100.1"}, {"https,http", "a:1, b", "1.2.3.4, 192.0.2.9"}, {"ftp", "evil\"\r\nX: y", "::1%eth0"}, {"", "[::1]:5000", "unknown"}, {"HTTPS ", "a/b", ",,,"}} {
		f.Add(c[0], c[1], c[2])
	}
	form := regexp.MustCompile(`^Bearer realm="https?://[^"\\\s]+/service/token",service="portolan"$`)
	f.Fuzz(func(t *testing.T, proto, host, addrs string) {
		ask := func() *httptest.ResponseRecorder { return httptest.NewRecorder() }
		plain, r := get("/v2/", "", ""), get("/v2/", "", "")
		r.Header["X-Forwarded-Proto"], r.Header["X-Forwarded-Host"], r.Header["X-Forwarded-For"] = []string{proto}, []string{host}, []string{addrs}
		if other.ExternalURL(r) != other.ExternalURL(plain) || other.ClientAddr(r) != other.ClientAddr(plain) {
			t.Fatalf("believed without trust: %s, %s", other.ExternalURL(r), other.ClientAddr(r))
		}
		u, err := url.Parse(trusting.ExternalURL(r))
		if err != nil || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
			t.Fatalf("%q: %v", trusting.ExternalURL(r), err)
		}
		w := ask()
		trusting.Challenge(w, r, "")
		if c := w.Header().Get("WWW-Authenticate"); !form.MatchString(c) {
			t.Fatalf("challenge %q", c)
		}
		if addr := trusting.ClientAddr(r); !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() ||
			addr != netip.MustParseAddr("192.0.2.1") && !strings.Contains(addrs, ".") && !strings.Contains(addrs, ":") {
			t.Fatalf("address %s of %q", addr, addrs)
		}
	})
}

// FuzzScopes: what a token is asked for becomes canonical names and known words,
// few of them.
func FuzzScopes(f *testing.F) {
	m := newMesh(f)
	a := m.access()
	for _, s := range []string{"repository:prod/app:pull,push", "registry:catalog:*", "repository(plugin):a/b:*", "repository:h:5000/a/b:pull", strings.Repeat("repository:a/b:pull ", 100), ":::", "repository::pull"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, scope string) {
		r := get(TokenPath, "", "")
		claims := a.parseScopes(r, []string{scope})
		if len(claims) > maxScopes {
			t.Fatalf("%d scopes", len(claims))
		}
		for _, c := range claims {
			if c.Type == "registry" && c.Name == "catalog" {
				continue
			}
			p, repo, err := a.Canonical(r, c.Name)
			if c.Type != "repository" || err != nil || p+"/"+repo != c.Name || len(c.Actions) == 0 || len(c.Actions) > 3 {
				t.Fatalf("%q is %+v", scope, c)
			}
		}
	})
}

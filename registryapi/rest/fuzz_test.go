package rest

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// FuzzParseFilter: what is taken filters by what stands there, and what is
// refused is the client's mistake.
func FuzzParseFilter(f *testing.F) {
	for _, q := range []string{"name=app", "name=~a,public=true", "=", "name==x", "name=~", "name=a,name=b", " , ", "name=(a)", "name\x00=a"} {
		f.Add(q, "app")
	}
	f.Fuzz(func(t *testing.T, q, value string) {
		filter, err := ParseFilter(q, "name", "public")
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Status != 400 {
				t.Fatalf("%q: %v", q, err)
			}
			return
		}
		for k, m := range filter {
			if k != "name" && k != "public" {
				t.Fatalf("%q filters by %q", q, k)
			}
			if !strings.Contains(q, m.Value) {
				t.Fatalf("%q looks for %q", q, m.Value)
			}
			if !filter.OK(k, m.Value) {
				t.Fatalf("%q does not find its own %q", q, m.Value)
			}
			if filter.OK(k, value) && !m.Fuzzy && value != m.Value {
				t.Fatalf("%q finds %q", q, value)
			}
		}
		if _, asked := filter["name"]; !asked && !filter.OK("name", value) {
			t.Fatalf("%q hides %q", q, value)
		}
	})
}

var pageLink = regexp.MustCompile(`<([^>]*)>; rel="(next|prev)"`)

// FuzzPage follows the links of a list to both ends: each entry comes once.
func FuzzPage(f *testing.F) {
	f.Add(1, 10, 25, "/api/v2.0/projects", "q=a%26b&page=7")
	f.Add(3, 1, 4, "/api/v2.0/projects/a%2Fb/x", "name=%3E%2C%22")
	f.Add(100, 100, 0, "/", "")
	f.Fuzz(func(t *testing.T, page, size, total int, path, query string) {
		if page < 1 || page > 1_000_000 || size < 1 || size > MaxPageSize || total < 0 || total > 2_000 {
			return // refused before, by the declared bounds
		}
		u, err := url.ParseRequestURI(path)
		if err != nil || !strings.HasPrefix(path, "/") || u.RawQuery != "" {
			return
		}
		u.RawQuery = query
		if _, err := url.ParseQuery(query); err != nil {
			return
		}
		all := make([]int, total)
		for i := range all {
			all[i] = i
		}
		seen := 0
		for p := page; ; p++ {
			in := &Page{Page: p, PageSize: size, url: *u}
			list := PageOf(in, all)
			if list.Total != total || len(list.Body) > size || list.Body == nil {
				t.Fatalf("page %d: %d of %d", p, len(list.Body), list.Total)
			}
			for i, v := range list.Body {
				if v != in.Start()+i {
					t.Fatalf("page %d has %d at %d", p, v, i)
				}
			}
			seen += len(list.Body)
			next := ""
			for _, m := range pageLink.FindAllStringSubmatch(list.Link, -1) {
				got, err := url.Parse(m[1])
				if err != nil || got.EscapedPath() != "/"+strings.TrimLeft(u.EscapedPath(), "/") || got.Host != "" {
					t.Fatalf("link %q of %s: %v", m[1], u, err)
				}
				for k, v := range u.Query() {
					if k != "page" && k != "page_size" && strings.Join(got.Query()[k], "\x00") != strings.Join(v, "\x00") {
						t.Fatalf("link %q lost %s of %s", m[1], k, u)
					}
				}
				if m[2] == "next" {
					next = got.Query().Get("page")
				}
			}
			if next == "" {
				break
			}
		}
		if want := max(0, total-(page-1)*size); seen != want {
			t.Fatalf("%d entries from page %d on, want %d", seen, page, want)
		}
	})
}

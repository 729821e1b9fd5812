package access

import (
	"errors"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	m.project("reg.example.org", false)
	long := strings.Repeat("a", 127)
	for name, want := range map[string]string{
		"alpine":                             "library alpine",
		"library/alpine":                     "library alpine",
		"reg.example.com:5000/alpine":        "library alpine",
		"reg.example.com:5000/prod/app":      "prod app",
		"prod/app/web":                       "prod app/web",
		"a__b/c---d/e.f_g":                   "a__b c---d/e.f_g",
		"other.example.com/alpine":           "other.example.com alpine",
		long + "/" + long:                    long + " " + long,
		"":                                   "",
		"/a":                                 "",
		"a//b":                               "",
		"A/b":                                "",
		"a/b/":                               "",
		"a/../b":                             "",
		"a/.b":                               "",
		"a/b_":                               "",
		"a/b___c":                            "",
		"other.example.com:5000/alpine":      "",
		"a/" + strings.Repeat("b", 254):      "",
		strings.Repeat("b", 250):             "",
		"a/b\n":                              "",
		"ä/b":                                "",
		"reg.example.com:5000/":              "",
		"reg.example.com:5000":               "",
		"reg.example.com:5000/x:5000/y":      "",
		"reg.example.com:5000/library/" + "": "",
	} {
		project, repo, err := a.Canonical(get("/v2/", "", ""), name)
		if want == "" {
			if !errors.Is(err, ErrName) {
				t.Errorf("%q: %q %q %v, want ErrName", name, project, repo, err)
			}
			continue
		}
		if err != nil || project+" "+repo != want {
			t.Errorf("%q: %q %q %v, want %q", name, project, repo, err, want)
		}
	}
	r := get("/v2/", "", "")
	r.Host = "reg.example.org"
	if p, repo, err := a.Canonical(r, "reg.example.org/app"); err != nil || p != "reg.example.org" || repo != "app" {
		t.Errorf("a project of the host's name: %q %q %v", p, repo, err)
	}
}

func FuzzCanonical(f *testing.F) {
	m := newMesh(f)
	a := m.access()
	for _, s := range []string{"alpine", "a/b", "reg.example.com:5000/alpine", "A/b", "a//b", strings.Repeat("a/", 130)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r := get("/v2/", "", "")
		project, repo, err := a.Canonical(r, name)
		if err != nil {
			return
		}
		full := project + "/" + repo
		if len(full) > MaxNameBytes || !nameRegexp.MatchString(full) || strings.Contains(project, "/") {
			t.Fatalf("%q became %q", name, full)
		}
		// One form only: the canonical name is its own canonical name.
		if p, q, err := a.Canonical(r, full); err != nil || p != project || q != repo {
			t.Fatalf("%q became %q, which becomes %q %q %v", name, full, p, q, err)
		}
	})
}

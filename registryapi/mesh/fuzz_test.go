package mesh

import (
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/portolan/portolan/registryapi/apitest"
)

// FuzzImage: what is read as an image is written back as one, and the same.
func FuzzImage(f *testing.F) {
	v := apitest.New(f).State.View()
	d := "@sha256:" + strings.Repeat("a", 64)
	for _, s := range []string{"alpine", "prod/app:1.0", "prod/app" + d, "prod/app:1" + d, "reg.example:5000/prod/app", "localhost/x", "a:b:c", "/", "a/", "prod/App:1", "prod/app:", "@", "prod/app@sha256:12"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		project, repo, tag, digest, err := parse(v, s)
		if err != nil {
			return
		}
		i := image{repo: repo, tag: tag, digest: digest}
		i.project.Name = project
		if project == "" || repo == "" || strings.Contains(project, "/") {
			t.Fatalf("%q is %q in %q", s, repo, project)
		}
		if _, err := reference.Parse(i.String()); err != nil {
			t.Fatalf("%q became %q: %v", s, i, err)
		}
		if digest != "" && digest.Validate() != nil {
			t.Fatalf("%q has digest %q", s, digest)
		}
		p, q, tg, dg, err := parse(v, "any.example/"+i.String())
		if err != nil || p != project || q != repo || tg != tag || dg != digest {
			t.Fatalf("%q became %q, which becomes %q %q %q %q, %v", s, i, p, q, tg, dg, err)
		}
	})
}

package roundtrip

import (
	"os"
	"path/filepath"
	"testing"

	"oras.land/oras-go/v2"
	ocistore "oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/test/clients"
)

// These clients move artifacts as they are: what is pulled is compared with
// the very files that were pushed.

func skopeo(t *testing.T, b *bed, from, to int) {
	program := clients.Need(t, "skopeo")
	here, there := clients.Home(t), clients.Home(t)
	clients.Run(t, here, program, "login", "--tls-verify=false", "--username", pusher, "--password", password, b.Sites[from].Host())
	clients.Run(t, there, program, "login", "--tls-verify=false", "--username", puller, "--password", password, b.Sites[to].Host())
	for repository, image := range map[string]string{"skopeo-app": "app", "skopeo-multi": "multi"} {
		// It writes an index anew, without what it does not know (artifactType);
		// it leaves alone what it wrote itself.
		layout, back := filepath.Join(t.TempDir(), "layout"), filepath.Join(t.TempDir(), "back")
		clients.Run(t, here, program, "copy", "--all", "oci:"+b.set.Layout(image)+":1", "oci:"+layout+":1")
		clients.Run(t, here, program, "copy", "--all", "--preserve-digests", "--dest-tls-verify=false",
			"oci:"+layout+":1", "docker://"+b.name(from, repository)+":1")
		clients.Run(t, there, program, "copy", "--all", "--preserve-digests", "--src-tls-verify=false",
			"docker://"+b.name(to, repository)+":1", "oci:"+back+":1")
		exact(t, layout, b.same(t, from, to, repository, "1"), back)
	}
}

func crane(t *testing.T, b *bed, from, to int) {
	program := clients.Need(t, "crane")
	here, there := clients.Home(t), clients.Home(t)
	clients.Run(t, here, program, "auth", "login", b.Sites[from].Host(), "-u", pusher, "-p", password)
	clients.Run(t, there, program, "auth", "login", b.Sites[to].Host(), "-u", puller, "-p", password)
	for repository, image := range map[string]string{"crane-app": "app", "crane-multi": "multi"} {
		back := filepath.Join(t.TempDir(), "back")
		clients.Run(t, here, program, "push", "--insecure", b.set.Layout(image), b.name(from, repository)+":1")
		clients.Run(t, there, program, "validate", "--insecure", "--remote", b.name(to, repository)+":1")
		clients.Run(t, there, program, "pull", "--insecure", "--format", "oci", b.name(to, repository)+":1", back)
		exact(t, b.set.Layout(image), b.same(t, from, to, repository, "1"), back)
	}
}

func regctl(t *testing.T, b *bed, from, to int) {
	program := clients.Need(t, "regctl")
	here, there := clients.Home(t), clients.Home(t)
	for _, c := range []struct {
		env  []string
		site int
		who  string
	}{{here, from, pusher}, {there, to, puller}} {
		clients.Run(t, c.env, program, "registry", "set", "--tls", "disabled", b.Sites[c.site].Host())
		clients.Run(t, c.env, program, "registry", "login", "--user", c.who, "--pass", password, b.Sites[c.site].Host())
	}
	for repository, image := range map[string]string{"regctl-app": "app", "regctl-multi": "multi"} {
		back := filepath.Join(t.TempDir(), "back")
		clients.Run(t, here, program, "image", "copy", "ocidir://"+b.set.Layout(image)+":1", b.name(from, repository)+":1")
		clients.Run(t, there, program, "image", "copy", b.name(to, repository)+":1", "ocidir://"+back+":1")
		exact(t, b.set.Layout(image), b.same(t, from, to, repository, "1"), back)
	}
}

// orasLibrary copies an image together with what refers to it: a report, and a
// note on the report.
func orasLibrary(t *testing.T, b *bed, from, to int) {
	ctx := t.Context()
	source := filepath.Join(t.TempDir(), "source")
	if err := os.CopyFS(source, os.DirFS(b.set.Layout("multi"))); err != nil {
		t.Fatal(err)
	}
	src, err := ocistore.New(source)
	if err != nil {
		t.Fatal(err)
	}
	image, err := src.Resolve(ctx, "1")
	if err != nil {
		t.Fatal(err)
	}
	attach := func(subject ocispec.Descriptor, artifactType, text string) ocispec.Descriptor {
		t.Helper()
		blob, err := oras.PushBytes(ctx, src, "text/plain", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		d, err := oras.PackManifest(ctx, src, oras.PackManifestVersion1_1, artifactType,
			oras.PackManifestOptions{Subject: &subject, Layers: []ocispec.Descriptor{blob}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	report := attach(image, "application/vnd.portolan.test.report", "nothing found")
	note := attach(report, "application/vnd.portolan.test.note", "looked twice")

	repository := func(i int, who string) *remote.Repository {
		t.Helper()
		r, err := remote.NewRepository(b.name(i, "oras"))
		if err != nil {
			t.Fatal(err)
		}
		r.PlainHTTP = true
		r.Client = &auth.Client{Cache: auth.NewCache(),
			Credential: auth.StaticCredential(b.Sites[i].Host(), auth.Credential{Username: who, Password: password})}
		// No falling back to a tag: the registry lists referrers itself.
		if err := r.SetReferrersCapability(true); err != nil {
			t.Fatal(err)
		}
		return r
	}
	here, there := repository(from, pusher), repository(to, puller)
	pushed, err := oras.ExtendedCopy(ctx, src, "1", here, "1", oras.DefaultExtendedCopyOptions)
	if err != nil {
		t.Fatal(err)
	}
	if pushed.Digest != image.Digest {
		t.Errorf("pushed %s as %s", image.Digest, pushed.Digest)
	}

	back := filepath.Join(t.TempDir(), "back")
	dst, err := ocistore.New(back)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oras.ExtendedCopy(ctx, there, "1", dst, "1", oras.DefaultExtendedCopyOptions); err != nil {
		t.Fatal(err)
	}
	want, got := layoutBlobs(t, source), layoutBlobs(t, back)
	for d, size := range want {
		if got[d] != size {
			t.Errorf("%s has %d bytes, %d came back", d, size, got[d])
		}
	}
	b.same(t, from, to, "oras", "1")
	for _, of := range []struct{ subject, referrer ocispec.Descriptor }{{image, report}, {report, note}} {
		var listed []ocispec.Descriptor
		if err := there.Referrers(ctx, of.subject, of.referrer.ArtifactType, func(ds []ocispec.Descriptor) error {
			listed = append(listed, ds...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(listed) != 1 || listed[0].Digest != of.referrer.Digest || listed[0].Size != of.referrer.Size {
			t.Errorf("referrers of %s of type %s: %v, want %s", of.subject.Digest, of.referrer.ArtifactType, listed, of.referrer.Digest)
		}
	}
}

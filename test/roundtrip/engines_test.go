package roundtrip

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/clients"
)

// docker packs layers anew when it pushes, and its manifests are Docker's own
// types: an image, then a list of two platforms.
func docker(t *testing.T, b *bed, from, to int) {
	here, there := clients.Docker(t), clients.Docker(t)
	here.Login(t, b.Sites[from].Host(), pusher, password)
	there.Login(t, b.Sites[to].Host(), puller, password)
	push, pull := b.name(from, "docker"), b.name(to, "docker")
	inspect := func(e *clients.Engine, image, format string) string {
		t.Helper()
		return strings.TrimSpace(e.Run(t, "image", "inspect", "--format", format, image))
	}

	here.Load(t, b.set.Layout("app"), push+":1")
	here.Run(t, "push", push+":1")
	there.Run(t, "pull", pull+":1")
	got := b.same(t, from, to, "docker", "1")
	for _, e := range []struct {
		engine *clients.Engine
		name   string
	}{{here, push}, {there, pull}} {
		// An engine's image id is the digest of its configuration, which
		// names the hash of every unpacked layer.
		if id := inspect(e.engine, e.name+":1", "{{.Id}}"); id != got.config {
			t.Errorf("%s is image %s, its manifest names %s", e.name, id, got.config)
		}
		if d := inspect(e.engine, e.name+":1", "{{index .RepoDigests 0}}"); d != e.name+"@"+got.root {
			t.Errorf("the engine knows %s, the tag gives %s", d, got.root)
		}
	}

	for _, arch := range []string{"amd64", "arm64"} {
		here.Load(t, b.set.Layout("multi"), push+":"+arch, "--override-os", "linux", "--override-arch", arch)
		here.Run(t, "push", push+":"+arch)
	}
	here.Run(t, "manifest", "create", "--insecure", push+":list", push+":amd64", push+":arm64")
	list := strings.TrimSpace(here.Run(t, "manifest", "push", "--insecure", push+":list"))
	for _, arch := range []string{"amd64", "arm64"} {
		there.Run(t, "pull", "--platform", "linux/"+arch, pull+":list")
		if id, want := inspect(there, pull+":list", "{{.Id}}"), inspect(here, push+":"+arch, "{{.Id}}"); id != want {
			t.Errorf("pulled %s for %s, pushed %s", id, arch, want)
		}
	}
	if got := b.same(t, from, to, "docker", "list"); got.root != list {
		t.Errorf("docker pushed the list %s, the tag gives %s", list, got.root)
	}
}

// containerd keeps what it pulls as it came: manifests, configurations and
// compressed layers.
func containerd(t *testing.T, b *bed, from, to int) {
	here, there := clients.StartContainerd(t), clients.StartContainerd(t)
	for repository, image := range map[string]string{"ctr-app": "app", "ctr-multi": "multi"} {
		layout, push, pull := b.set.Layout(image), b.name(from, repository), b.name(to, repository)
		archive := pack(t, layout)
		here.Run(t, "images", "import", "--all-platforms", "--no-unpack", "--base-name", push, archive)
		here.Run(t, "images", "push", "--plain-http", "--user", pusher+":"+password, push+":1")
		there.Run(t, "images", "pull", "--plain-http", "--all-platforms", "--snapshotter", "native",
			"--user", puller+":"+password, pull+":1")

		got := b.same(t, from, to, repository, "1")
		if want := layoutRoot(t, layout); got.root != want {
			t.Errorf("pushed %s, the tag gives %s", want, got.root)
		}
		held := there.Content(t)
		for d := range layoutBlobs(t, layout) {
			if _, pushed := got.sizes[d]; !pushed {
				t.Errorf("%s was not pushed", d)
			}
			if held[d] != d {
				t.Errorf("%s came back as %q", d, held[d])
			}
		}
	}
}

// pack makes an archive of an OCI layout, as `docker save` and ctr have it.
func pack(t *testing.T, layout string) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(layout)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, &buf); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// podman packs layers anew and keeps the manifest that it pulled.
func podman(t *testing.T, b *bed, from, to int) {
	here, there := clients.Podman(t), clients.Podman(t)
	here("login", "--tls-verify=false", "--username", pusher, "--password", password, b.Sites[from].Host())
	there("login", "--tls-verify=false", "--username", puller, "--password", password, b.Sites[to].Host())
	push, pull := b.name(from, "podman")+":1", b.name(to, "podman")+":1"

	here("load", "--input", clients.Archive(t, b.set.Layout("app"), push))
	file := filepath.Join(t.TempDir(), "digest")
	here("push", "--tls-verify=false", "--digestfile", file, push)
	there("pull", "--quiet", "--tls-verify=false", pull)

	got := b.same(t, from, to, "podman", "1")
	if digest := string(read(t, file)); digest != got.root {
		t.Errorf("podman pushed %s, the tag gives %s", digest, got.root)
	}
	if d := strings.TrimSpace(there("image", "inspect", "--format", "{{.Digest}}", pull)); d != got.root {
		t.Errorf("podman pulled %s, the tag gives %s", d, got.root)
	}
	pushed := strings.TrimSpace(here("image", "inspect", "--format", "{{.Id}}", push))
	pulled := strings.TrimSpace(there("image", "inspect", "--format", "{{.Id}}", pull))
	if pushed != pulled || "sha256:"+pulled != got.config {
		t.Errorf("podman pushed the image %s and pulled %s; the manifest names %s", pushed, pulled, got.config)
	}
}

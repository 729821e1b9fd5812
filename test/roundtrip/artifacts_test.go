package roundtrip

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
)

// helm packs a chart, pushes it, and renders it at the other site. A plus sign
// in a version is an underscore in the tag.
func helm(t *testing.T, b *bed, from, to int) {
	program := clients.Need(t, "helm")
	here, there := in(clients.Home(t), clients.Offline()), in(clients.Home(t), clients.Offline())
	chart := filepath.Join(t.TempDir(), "harbour")
	for name, text := range map[string]string{
		"Chart.yaml":         "apiVersion: v2\nname: harbour\nversion: 1.2.3+build.4\ndescription: a chart of a test\n",
		"values.yaml":        "depth: 12\n",
		"templates/map.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  depth: {{ .Values.depth | quote }}\n",
	} {
		write(t, filepath.Join(chart, name), text)
	}
	packed, pulled := t.TempDir(), t.TempDir()
	clients.Run(t, here, program, "package", chart, "--destination", packed)
	const file, tag = "harbour-1.2.3+build.4.tgz", "1.2.3_build.4"

	clients.Run(t, here, program, "registry", "login", b.Sites[from].Host(), "--plain-http", "--username", pusher, "--password", password)
	clients.Run(t, there, program, "registry", "login", b.Sites[to].Host(), "--plain-http", "--username", puller, "--password", password)
	clients.Run(t, here, program, "push", filepath.Join(packed, file), "oci://"+b.name(from, "charts"), "--plain-http")
	ref := "oci://" + b.name(to, "charts/harbour")
	clients.Run(t, there, program, "pull", ref, "--version", "1.2.3+build.4", "--plain-http", "--destination", pulled)

	want := read(t, filepath.Join(packed, file))
	if !bytes.Equal(want, read(t, filepath.Join(pulled, file))) {
		t.Error("the chart that came back is another")
	}
	if got := b.same(t, from, to, "charts/harbour", tag); got.sizes[digestOf(want)] != int64(len(want)) {
		t.Errorf("the chart is %s, its tag leads to %v", digestOf(want), got)
	}
	// A range of versions is answered from the list of tags.
	out := clients.Run(t, there, program, "template", "deep", ref, "--version", "^1.2.0", "--plain-http", "--set", "depth=20")
	if !strings.Contains(out, `depth: "20"`) {
		t.Errorf("the chart renders as\n%s", out)
	}
}

// bundleType begins the type of what cosign attaches in the way of OCI 1.1.
const bundleType = "application/vnd.dev.sigstore.bundle"

// cosign signs at one site and verifies at another, with a key and nothing
// else: in the way of OCI 1.1, where a signature refers to its image, and in
// the older one, where it has a tag made of the image's digest.
func cosign(t *testing.T, b *bed, from, to int) {
	program, push := clients.Need(t, "cosign"), clients.Need(t, "skopeo")
	keys := t.TempDir()
	env := func() []string {
		return in(clients.Home(t), clients.Offline(), []string{"COSIGN_PASSWORD=" + password, "SIGSTORE_NO_CACHE=1"})
	}
	here, there := env(), env()
	key := func(name string) string {
		t.Helper()
		clients.Run(t, here, program, "generate-key-pair", "--output-key-prefix", filepath.Join(keys, name))
		return filepath.Join(keys, name)
	}
	ours, theirs := key("ours"), key("theirs")
	clients.Run(t, here, program, "login", b.Sites[from].Host(), "-u", pusher, "-p", password)
	clients.Run(t, there, program, "login", b.Sites[to].Host(), "-u", puller, "-p", password)

	digest := layoutRoot(t, b.set.Layout("app"))
	for _, way := range []struct {
		repository string
		options    []string
		found      func(t *testing.T) string // where the signature is, at the site where it is verified
	}{
		{"signed", nil, func(t *testing.T) string {
			refs := b.referrers(t, to, "signed", digest)
			if len(refs) != 1 || !strings.HasPrefix(refs[0].ArtifactType, bundleType) {
				t.Fatalf("what refers to the image is %v, want one of type %s…", refs, bundleType)
			}
			return refs[0].Digest.String()
		}},
		{"signed-tag", []string{"--new-bundle-format=false"}, func(*testing.T) string {
			return strings.Replace(digest, ":", "-", 1) + ".sig"
		}},
	} {
		clients.Run(t, here, push, "copy", "--preserve-digests", "--dest-tls-verify=false",
			"oci:"+b.set.Layout("app")+":1", "docker://"+b.name(from, way.repository)+":1")
		signed, pulled := b.name(from, way.repository)+"@"+digest, b.name(to, way.repository)+"@"+digest
		verify := func(key string) (string, error) {
			return clients.Try(t, there, program, append([]string{"verify", "--key", key + ".pub", "--insecure-ignore-tlog=true",
				"--allow-http-registry", "--output", "json"}, append(way.options, pulled)...)...)
		}
		if out, err := verify(ours); err == nil {
			t.Fatalf("what nobody signed is verified: %s", out)
		}
		clients.Run(t, here, program, append([]string{"sign", "--key", ours + ".key", "--yes", "--use-signing-config=false",
			"--tlog-upload=false", "--allow-http-registry"}, append(way.options, signed)...)...)
		// That site has been asked before, and must not keep the answer.
		cluster.Eventually(t, cluster.Patience, "the signature is at "+b.Sites[to].Name, func() error {
			out, err := verify(ours)
			if err == nil && !strings.Contains(out, digest) {
				err = fmt.Errorf("cosign verified %s", out)
			}
			return err
		})
		if out, err := verify(theirs); err == nil {
			t.Errorf("a signature of ours is verified with another key: %s", out)
		}
		b.same(t, from, to, way.repository, way.found(t))
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

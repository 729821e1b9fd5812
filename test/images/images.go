// Package images makes real container images for tests out of Debian packages:
// files of distributions, compressed layers of uneven sizes, configurations
// that engines accept. They are kept as an OCI layout in a cache outside the
// checkout, so that only the first run downloads.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// recipe names the packages of each layer. Changing it changes the cache's
// directory, see version.
var (
	baseLayer   = []string{"busybox-static"}
	pythonLayer = []string{"python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"}
	appLayer    = []string{"python3-numpy", "python3-pip-whl"}
	dataLayer   = []string{"tzdata", "ca-certificates", "netbase"}
)

const version = "1"

// epoch is the time of every file: the same packages give the same digests.
var epoch = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// Set is a directory of OCI layouts.
type Set struct {
	// Dir holds one layout per image: "app" (three layers), "base" (one layer,
	// shared with app) and "multi" (an index of amd64 and arm64 that share a layer).
	Dir string
}

// Layout gives the directory of an image's OCI layout.
func (s Set) Layout(name string) string { return filepath.Join(s.Dir, name) }

// Path gives the image's layout for go-containerregistry.
func (s Set) Path(t testing.TB, name string) layout.Path {
	t.Helper()
	p, err := layout.FromPath(s.Layout(name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	once   sync.Once
	result Set
	errMk  error
)

// Make returns the images, making them if the cache has none. Where they can't
// be made (no Debian, no mirror) the test is skipped, or fails with CI set.
func Make(t testing.TB) Set {
	t.Helper()
	once.Do(func() { result, errMk = makeAll() })
	if errMk != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("images can't be made: %v", errMk)
		}
		t.Skipf("images can't be made here (they come from Debian packages): %v", errMk)
	}
	return result
}

func cacheDir() (string, error) {
	if d := os.Getenv("CACHE"); d != "" {
		return d, nil
	}
	d, err := os.UserCacheDir()
	return filepath.Join(d, "portolan"), err
}

func makeAll() (Set, error) {
	cache, err := cacheDir()
	if err != nil {
		return Set{}, err
	}
	set := Set{Dir: filepath.Join(cache, "images-"+version)}
	if _, err := os.Stat(filepath.Join(set.Dir, "done")); err == nil {
		return set, nil
	}
	work := set.Dir + ".tmp"
	if err := os.RemoveAll(work); err != nil {
		return Set{}, err
	}
	tmp := Set{Dir: work}
	if err := tmp.build(); err != nil {
		return Set{}, err
	}
	if err := os.WriteFile(filepath.Join(work, "done"), nil, 0o644); err != nil {
		return Set{}, err
	}
	_ = os.RemoveAll(set.Dir)
	return set, os.Rename(work, set.Dir)
}

func (s Set) build() error {
	var layers [4]v1.Layer
	for i, packages := range [][]string{baseLayer, pythonLayer, appLayer, dataLayer} {
		root := filepath.Join(s.Dir, "root", fmt.Sprint(i))
		if err := unpack(root, packages); err != nil {
			return err
		}
		l, err := layerOf(root, i == 0)
		if err != nil {
			return err
		}
		layers[i] = l
	}
	base, err := image("amd64", layers[:1])
	if err != nil {
		return err
	}
	app, err := image("amd64", layers[:3])
	if err != nil {
		return err
	}
	arm, err := image("arm64", layers[3:])
	if err != nil {
		return err
	}
	amd, err := image("amd64", []v1.Layer{layers[0], layers[3]})
	if err != nil {
		return err
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	for name, img := range map[string]v1.Image{"base": base, "app": app} {
		p, err := layout.Write(s.Layout(name), empty.Index)
		if err != nil {
			return err
		}
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})); err != nil {
			return err
		}
	}
	p, err := layout.Write(s.Layout("multi"), empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.Dir, "root"))
}

func image(arch string, layers []v1.Layer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	cfg.Created = v1.Time{Time: epoch}
	cfg.Config.Cmd = []string{"/bin/busybox", "echo", "portolan test image"}
	return mutate.ConfigFile(img, cfg)
}

// unpack downloads packages and lays out their files under root.
func unpack(root string, packages []string) error {
	debs := root + ".debs"
	for _, d := range []string{root, debs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	get := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "download"}, packages...)...)
	get.Dir = debs
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w: %s", strings.Join(packages, " "), err, bytes.TrimSpace(out))
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("apt-get download brought nothing")
	}
	for _, f := range files {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", f, root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w: %s", filepath.Base(f), err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// layerOf packs a tree; the first layer also gets the directories that an
// engine expects.
func layerOf(root string, first bool) (v1.Layer, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	var names []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && p != root {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	if first {
		for _, d := range []string{"dev/", "etc/", "proc/", "sys/", "tmp/"} {
			if err := tw.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: epoch}); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range names {
		if err := addFile(tw, root, p); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

func addFile(tw *tar.Writer, root, p string) error {
	fi, err := os.Lstat(p)
	if err != nil {
		return err
	}
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return err
	}
	h.Name, h.ModTime, h.AccessTime, h.ChangeTime = rel, epoch, time.Time{}, time.Time{}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	if fi.IsDir() {
		h.Name += "/"
	}
	if err := tw.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

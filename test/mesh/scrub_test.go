package mesh

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	registry "github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/test/cluster"
)

// TestScrub flips a bit of a blob that nobody reads, at one of two real nodes, in a
// way that the file's times do not tell of. The node finds it by itself, puts the
// file aside, fetches it anew from the other one, and says so.
func TestScrub(t *testing.T) {
	m := mesh{cluster.StartDev(t, 2)}
	layer := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{'s', 'c', 'r', 'u', 'b'}).Read(layer)
	m.Must(t, 0, "project", "create", "prod", "--public")
	m.Must(t, 0, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	m.pushLayer(t, 0, "prod/app", "1", layer)
	m.Must(t, 0, "wait", "prod/app:1", "--sites", "all", "--timeout", "60s")

	site := m.Sites[1]
	hex := strings.TrimPrefix(digestOf(layer), "sha256:")
	path := filepath.Join(site.Data, "store", "blobs", "sha256", hex[:2], hex)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{layer[99] ^ 1}, 99); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}

	m.Must(t, 1, "scrub", "start")
	cluster.Eventually(t, cluster.Patience, "a pass that finds it", func() error {
		var s registry.Scrub
		if err := json.Unmarshal([]byte(m.Must(t, 1, "scrub", "show", "--json")), &s); err != nil {
			return err
		}
		if s.Running || s.Damaged != 1 || s.PassedAt == nil || s.Site != site.Name {
			return fmt.Errorf("it says %+v", s)
		}
		return nil
	})
	cluster.Eventually(t, cluster.Patience, "the file is whole again", func() error {
		b, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(b, layer) {
			err = fmt.Errorf("%s has other bytes", path)
		}
		return err
	})
	if kept, err := filepath.Glob(filepath.Join(site.Data, "store", "quarantine", "*"+hex+"*")); err != nil || len(kept) != 1 {
		t.Errorf("put aside: %v, %v", kept, err)
	}
	m.Must(t, 1, "wait", "prod/app:1", "--sites", "all", "--timeout", "60s")
	if n := damaged(t, m, 1); n != "1" {
		t.Errorf("%s counts %s damaged blobs, want 1", site.Name, n)
	}
	if says := "the scrub found a damaged blob"; !strings.Contains(m.Dev.Output(), says) {
		t.Errorf("the log does not say %q", says)
	}
	if out := m.Must(t, 0, "scrub", "show"); !strings.Contains(out, "damaged:          0") {
		t.Errorf("the other site says:\n%s", out)
	}
}

package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	registry "github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
)

const sentMetric = "portolan_transfer_swarm_sent_bytes_total"

// killReceiver: the node that takes an image is killed when a good part is there,
// and started again.
func (b *bench) killReceiver(t *testing.T, name string) {
	m, size := midway(t)
	m.sites[1].process.Kill()
	m.sites[1].run(t, "serve")
	if err := m.arrives(t, "prod/app:1", 1); err != nil {
		t.Fatal(err)
	}
	b.add(t, m.stats(t, false), name+": sent again", (m.metric(t, 0, sentMetric)-size)/(1<<20), "MiB", figures.AtMost(64), "")
}

// killSource is the same of the node that sends.
func (b *bench) killSource(t *testing.T, name string) {
	m, size := midway(t)
	m.sites[0].process.Kill()
	m.sites[0].run(t, "serve")
	if err := m.arrives(t, "prod/app:1", 1); err != nil {
		t.Fatal(err)
	}
	b.add(t, m.stats(t, false), name+": sent again", (m.metric(t, 1, receivedMetric)-size)/(1<<20), "MiB", figures.AtMost(64), "")
}

// midway has a mesh in which half of an image of so many bytes has come to the second site.
func midway(t *testing.T) (*farMesh, float64) {
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, []float64{100, 100})
	m.must(t, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	img, size := benchImage(t, *benchScale)
	m.stats(t, true)
	m.sites[0].push(t, "prod/app:1", img)
	m.received(t, 1, size/2)
	return m, size
}

// received waits until a site has received so many bytes.
func (m *farMesh) received(t *testing.T, i int, bytes float64) {
	t.Helper()
	cluster.Eventually(t, 2*time.Minute, fmt.Sprintf("%.0f bytes are at %s", bytes, m.sites[i].site), func() error {
		if n := m.metric(t, i, receivedMetric); n < bytes {
			return fmt.Errorf("%.0f are", n)
		}
		return nil
	})
}

// sends waits until a site has sent a MiB from now on.
func (m *farMesh) sends(t *testing.T, i int) {
	t.Helper()
	before := m.metric(t, i, sentMetric)
	cluster.Eventually(t, time.Minute, m.sites[i].site+" sends", func() error {
		n := m.metric(t, i, sentMetric)
		if n-before < 1<<20 {
			return fmt.Errorf("it sent %.0f bytes meanwhile", n-before)
		}
		return nil
	})
}

// liar: a site pulls from four holders, all of which are honest; and again when
// the nearest begins to send bytes that are not the image's, and the next one
// stops midway with its connections open. The liar is an honest node whose files
// change under its hands: what it has open it goes on reading, and sends.
func (b *bench) liar(t *testing.T, name string) {
	const liar, staller, at = 1, 2, 4
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond, near: map[int]time.Duration{liar: 40 * time.Millisecond, staller: 60 * time.Millisecond}},
		[]float64{100, 100, 100, 100, 100})
	m.must(t, "rule", "create", "holders", "--projects", "prod", "--sites", "s1,s2,s3")
	var took [2]time.Duration
	var st measured
	for round, image := range []string{"prod/honest:1", "prod/lies:1"} {
		img, size := benchImage(t, *benchScale)
		m.sites[0].push(t, image, img)
		for i := 1; i < at; i++ {
			if err := m.arrives(t, image, i); err != nil {
				t.Fatal(err)
			}
		}
		m.sites[at].listed(t, image)
		had := m.metric(t, at, receivedMetric)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		m.stats(t, true)
		line := m.startTimeline(t)
		start := time.Now()
		done := make(chan error, 1)
		go func() { done <- m.sites[at].drain(ctx, image, img) }()
		if round == 1 {
			m.received(t, at, had+size/8)
			m.sends(t, liar) // given up for a while it has no file open, and refuses what it opens anew
			damage(t, m.sites[liar].data, img)
			line.note("%s lies", m.sites[liar].site)
			m.received(t, at, had+size/4)
			stopped := m.sites[staller].process.Cmd.Process
			if err := stopped.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			line.note("%s stopped", m.sites[staller].site)
			defer func() { _ = stopped.Signal(syscall.SIGCONT) }()
		}
		if err := <-done; err != nil { // which checks the digests
			t.Fatal(err)
		}
		took[round] = time.Since(start)
		st = m.stats(t, false)
		line.end(t, m, name)
	}
	var liars []string
	for _, s := range m.suspects(t, at) {
		liars = append(liars, s.Site)
	}
	if len(liars) != 1 || liars[0] != m.sites[liar].site {
		t.Errorf("the status names %v as liars, and not %s", liars, m.sites[liar].site)
	}
	if n := m.metric(t, at, "portolan_transfer_swarm_bad_units_total"); n == 0 {
		t.Error("no metric counts wrong units")
	}
	if out := m.sites[at].process.Output(); !strings.Contains(out, "peer sent a unit that is not the blob's") || !strings.Contains(out, m.sites[liar].site) {
		t.Error("no line of the log names the liar")
	}
	b.add(t, st, name+": time over that of four honest ones", took[1].Seconds()/took[0].Seconds(), "x", figures.AtMost(1.3),
		fmt.Sprintf("%.3g s and %.3g s", took[1].Seconds(), took[0].Seconds()))
}

// damage flips a bit in each 64 KiB of an image's layers in a node's directory.
func damage(t *testing.T, data string, img v1.Image) {
	t.Helper()
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range manifest.Layers {
		path := filepath.Join(data, "store", "blobs", "sha256", l.Digest.Hex[:2], l.Digest.Hex)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(1000); off < l.Size && err == nil; off += 64 << 10 {
			one := make([]byte, 1)
			if _, err = f.ReadAt(one, off); err == nil {
				one[0] ^= 1
				_, err = f.WriteAt(one, off)
			}
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// suspects are those that a site's status names for wrong bytes.
func (m *farMesh) suspects(t *testing.T, i int) []registry.Suspect {
	t.Helper()
	made := m.sites[i].cli(t, "transfers", "--json")
	var out registry.Transfers
	if err := json.Unmarshal([]byte(made.Stdout), &out); err != nil {
		t.Fatalf("transfers --json: %v: %s%s", err, made.Stdout, made.Stderr)
	}
	return out.Suspects
}

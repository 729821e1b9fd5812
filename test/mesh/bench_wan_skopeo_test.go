package mesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/portolan/portolan/test/clients"
)

// skopeo: what a push replication does, one site after the other and all at once,
// beside what a rule does, in the same mesh and round. All are timed from the start
// of the push, with images of the same sizes: of the same bytes the second one would
// find the first one's.
func (b *bench) skopeo(t *testing.T, name string) {
	const scale = 0.25
	skopeo := clients.Need(t, "skopeo")
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, slices.Repeat([]float64{100}, 5))
	share := m.goodput(t, 0, 1, 1) * 8 / 1e6 / m.rates[0]
	receivers := []int{1, 2, 3, 4}
	m.must(t, "project", "create", "ours")
	m.must(t, "rule", "create", "ours", "--projects", "ours", "--sites", "all")
	// Projects of each receiver's own, which may rest there and at the source only,
	// so that nothing travels but what skopeo sends.
	for _, i := range receivers {
		m.must(t, "project", "create", fmt.Sprintf("copy%d", i), "--sites", m.sites[0].site+","+m.sites[i].site)
	}
	copyTo := func(image string, i int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := m.lab.Command(ctx, "s0", skopeo, "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false",
			"--src-creds", "admin:"+wanPassword, "--dest-creds", "admin:"+wanPassword,
			"docker://"+m.sites[0].host+"/"+image, fmt.Sprintf("docker://%s/copy%d/%s", m.sites[i].host, i, strings.ReplaceAll(image, "/", "-")))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("skopeo to %s: %w: %s", m.sites[i].site, err, out)
		}
		return nil
	}
	together := func(run func(i int) error) error {
		errs := make([]error, len(receivers))
		var wg sync.WaitGroup
		for at, i := range receivers {
			wg.Go(func() { errs[at] = run(i) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	var ours time.Duration
	var quiet measured // of ours
	for _, c := range []struct {
		how, image string
		run        func(image string) error
	}{
		{"ours", "ours/app:1", func(image string) error {
			return together(func(i int) error { return m.arrives(t, image, i) })
		}},
		{"one after the other", "library/one:1", func(image string) error {
			for _, i := range receivers {
				if err := copyTo(image, i); err != nil {
					return err
				}
			}
			return nil
		}},
		{"in parallel", "library/parallel:1", func(image string) error {
			return together(func(i int) error { return copyTo(image, i) })
		}},
	} {
		img, size := benchImage(t, scale**benchScale)
		took, st := m.timed(t, c.image, img, c.run)
		const note = "a quarter of the image"
		row := name + ", " + c.how
		b.add(t, st, row+": time over the bound", took.Seconds()/m.bound(size, share, receivers), "x", nil, note)
		b.add(t, st, row+": origin on the wire", float64(st.Site("s0").EgressBytes)/size, "F", nil, note)
		if c.how == "ours" {
			ours, quiet = took, st
			continue
		}
		if _, why := quiet.void(); why != nil {
			st = quiet // a ratio is as good as the worse of its two
		}
		b.add(t, st, row+": times ours", took.Seconds()/ours.Seconds(), "x", nil, fmt.Sprintf("%.3g s and %.3g s", took.Seconds(), ours.Seconds()))
	}
}

// timed pushes an image at the first site, and gives how long that and what is to
// follow took together.
func (m *farMesh) timed(t *testing.T, image string, img v1.Image, then func(image string) error) (time.Duration, measured) {
	t.Helper()
	m.stats(t, true)
	start := time.Now()
	m.sites[0].push(t, image, img)
	if err := then(image); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	return took, m.stats(t, false)
}

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

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/clients"
)

// everywhere: a push at the first site, a rule that wants it at all others.
func (b *bench) everywhere(t *testing.T, name string, rates []float64) {
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, rates)
	share := m.goodput(t, 0, 1, 1) * 8 / 1e6 / m.rates[0]
	m.must(t, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	img, size := benchImage(t, *benchScale)
	sentBefore := m.metric(t, 0, sentMetric)
	cpuBefore := make([]float64, len(m.sites))
	for i := range m.sites {
		cpuBefore[i] = m.metric(t, i, "process_cpu_seconds_total")
	}
	m.lab.Stats(true)
	line := m.startTimeline(t)
	start := time.Now()
	took := make([]time.Duration, len(m.sites))
	var wg sync.WaitGroup
	m.sites[0].push(t, "prod/app:1", img)
	pushed := time.Since(start)
	line.note("pushed")
	for i := 1; i < len(m.sites); i++ {
		if m.rates[i] < m.rates[0] {
			continue // it takes the longer for its link; it is the others that are measured
		}
		wg.Go(func() {
			err := m.arrives(t, "prod/app:1", i)
			took[i] = time.Since(start)
			line.note("%s has it", m.sites[i].site)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	st := m.lab.Stats(false)
	line.end(t, m, name)
	if t.Failed() {
		return
	}
	var fast []int // those that are no slower than the source
	lastFast := time.Duration(0)
	for i := 1; i < len(took); i++ {
		if m.rates[i] >= m.rates[0] {
			fast = append(fast, i)
			lastFast = max(lastFast, took[i])
		}
	}
	cpu, came := 0.0, 0.0
	for i := range m.sites {
		cpu += m.metric(t, i, "process_cpu_seconds_total") - cpuBefore[i]
		came += m.metric(t, i, receivedMetric)
	}
	t.Logf("one TLS flow has %.1f %% of the cap; took %v; %.2f times what is needed was received; the router used %.1f s of processor time, the nodes %.1f s, in %.1f s",
		100*share, took[1:], came/size/float64(len(m.sites)-1), st.CPUSeconds, cpu, st.Seconds)
	least := m.bound(size, share, fast)
	if len(fast) < len(took)-1 {
		b.add(t, st, name+": the others' time over their bound", lastFast.Seconds()/least, "x", figures.AtMost(1.4), "")
	} else {
		b.add(t, st, name+": time over the bound", lastFast.Seconds()/least, "x", figures.AtMost(1.25), fmt.Sprintf("the push is %.2f of it", pushed.Seconds()/least))
		b.add(t, st, name+": payload that the origin sent", (m.metric(t, 0, sentMetric)-sentBefore)/size, "F", figures.AtMost(1.15), "")
		b.add(t, st, name+": origin on the wire", float64(st.Site("s0").EgressBytes)/size, "F", figures.AtMost(1.25), "")
	}
	b.add(t, st, name+": time of those as fast as the origin", lastFast.Seconds(), "s", nil, "")
	b.add(t, st, name+": most memory of a node", m.memory(t), "MiB", figures.AtMost(300), "")
	b.add(t, st, name+": processor time of all nodes for what arrived", cpu/(came/1e9), "CPU-s/GB", nil, "")
}

// skopeo: what a push replication does, one site after the other and all at once.
func (b *bench) skopeo(t *testing.T, name string) {
	skopeo := clients.Need(t, "skopeo")
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, slices.Repeat([]float64{100}, 5))
	share := m.goodput(t, 0, 1, 1) * 8 / 1e6 / m.rates[0]
	receivers := []int{1, 2, 3, 4}
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
	// Projects of each receiver's own, which may rest there and at the source only,
	// so that nothing travels but what skopeo sends.
	for _, i := range receivers {
		m.must(t, "project", "create", fmt.Sprintf("copy%d", i))
	}
	for _, c := range []struct {
		how   string
		scale float64
		run   func(image string) error
	}{
		{"one after the other", 0.25, func(image string) error {
			for _, i := range receivers {
				if err := copyTo(image, i); err != nil {
					return err
				}
			}
			return nil
		}},
		{"in parallel", 0.25, func(image string) error {
			errs := make([]error, len(receivers))
			var wg sync.WaitGroup
			for at, i := range receivers {
				wg.Go(func() { errs[at] = copyTo(image, i) })
			}
			wg.Wait()
			return errors.Join(errs...)
		}},
	} {
		img, size := benchImage(t, c.scale**benchScale)
		image := "library/" + strings.ReplaceAll(c.how, " ", "-") + ":1"
		m.sites[0].push(t, image, img)
		m.lab.Stats(true)
		start := time.Now()
		if err := c.run(image); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		st := m.lab.Stats(false)
		b.add(t, st, name+", "+c.how+": time over the bound", took.Seconds()/m.bound(size, share, receivers), "x", nil, "")
		b.add(t, st, name+", "+c.how+": origin on the wire", float64(st.Site("s0").EgressBytes)/size, "F", nil, "")
	}
}

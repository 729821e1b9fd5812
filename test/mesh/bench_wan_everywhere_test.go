package mesh

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
)

// everywhere: a push at the first site, a rule that wants it at all others.
func (b *bench) everywhere(t *testing.T, name string, rates []float64) {
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, rates)
	share := m.goodput(t, 0, 1, 1) * 8 / 1e6 / m.rates[0]
	m.must(t, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	img, size := benchImage(t, *benchScale)
	memory := watchMemory(t, m.pids())
	sentBefore := m.metric(t, 0, sentMetric)
	cpuBefore := make([]float64, len(m.sites))
	for i := range m.sites {
		cpuBefore[i] = m.metric(t, i, "process_cpu_seconds_total")
	}
	m.stats(t, true)
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
	st := m.stats(t, false)
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
	memory.add(b, t, st, name)
	b.add(t, st, name+": processor time of all nodes for what arrived", cpu/(came/1e9), "CPU-s/GB", nil, "")
}

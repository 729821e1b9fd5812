package mesh

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
)

// hints: how long after a push was answered the others list its tag. Polls are 6 s
// apart: what comes within a second was announced by gossip.
func (b *bench) hints(t *testing.T, name string) {
	const pushes = 20
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, []float64{100, 100, 100})
	img, _ := benchImage(t, 1e-5)
	m.sites[0].push(t, "prod/warm:1", img)
	for _, s := range m.sites[1:] {
		s.listed(t, "prod/warm:1")
	}
	m.stats(t, true)
	var took []float64
	for i := range pushes {
		tag := fmt.Sprint("v", i)
		m.sites[0].push(t, "prod/app:"+tag, img)
		pushed := time.Now()
		for _, s := range m.sites[1:] {
			cluster.Eventually(t, cluster.Patience, tag+" is listed at "+s.site, func() error { return s.lists(t, "prod/app", tag) })
		}
		took = append(took, time.Since(pushed).Seconds())
	}
	st := m.stats(t, false)
	slices.Sort(took)
	b.add(t, st, name, took[len(took)-1], "s", figures.AtMost(1), fmt.Sprintf("the slowest of %d pushes, at the last of two sites; median %.3g s", pushes, took[len(took)/2]))
}

// lists says whether a site has a tag in its own list: nobody is asked for it.
func (f *farSite) lists(t *testing.T, repo, tag string) error {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.host+"/v2/"+repo+"/tags/list", nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth("admin", wanPassword)
	resp, err := (&http.Client{Transport: f.transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var list struct{ Tags []string }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return err
	}
	if !slices.Contains(list.Tags, tag) {
		return fmt.Errorf("it lists %v", list.Tags)
	}
	return nil
}

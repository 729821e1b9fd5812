package mesh

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/portolan/portolan/test/cluster"
)

// TestBudget_KeepsALinkAndPauseHoldsIt: real nodes, one link with a cap, one
// without. That a link is used up is measured; that it is never overdrawn is a
// promise, which no busy machine can break.
func TestBudget_KeepsALinkAndPauseHoldsIt(t *testing.T) {
	const (
		size = 12 << 20
		mbit = 20
	)
	m := mesh{cluster.StartDev(t, 3)}
	from, capped, free := m.Sites[0].Name, m.Sites[1].Name, m.Sites[2].Name
	m.Must(t, 1, "project", "create", "prod")
	m.Must(t, 1, "transfer", "pause", capped)
	m.Must(t, 2, "budget", "set", fmt.Sprint(mbit), "--from", from, "--to", capped)
	// Else the free site would pass on what it has.
	m.Must(t, 2, "budget", "set", fmt.Sprint(mbit), "--to", capped)
	m.Must(t, 0, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	img, err := random.Image(size/4, 4)
	if err != nil {
		t.Fatal(err)
	}
	image := "prod/app:1.0"
	ref, err := name.ParseReference(m.Sites[0].Host()+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: m.Username, Password: m.Password}), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	m.Must(t, 0, "wait", image, "--sites", free, "--timeout", "60s")
	cluster.Eventually(t, cluster.Patience, "the image waits for the paused site, with the reason", func() error {
		var got struct {
			Site      string
			Paused    []struct{ Site, By string }
			Artifacts []struct{ Repository, State, Reason string }
		}
		out := m.Must(t, 1, "transfers", "--json")
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			return err
		}
		if got.Site != capped || len(got.Paused) != 1 || got.Paused[0].Site != capped || len(got.Artifacts) != 1 ||
			got.Artifacts[0].Repository != "prod/app" || got.Artifacts[0].State != "failed" || got.Artifacts[0].Reason == "" {
			return fmt.Errorf("transfers say %s", out)
		}
		return nil
	})
	before := m.received(t, 1)
	begun := time.Now()
	m.Must(t, 0, "transfer", "resume", capped)
	m.Must(t, 0, "wait", image, "--sites", capped, "--timeout", "120s")
	took := time.Since(begun)
	moved := m.received(t, 1) - before
	rate := moved * 8 / took.Seconds() / 1e6
	t.Logf("%.0f bytes came in %s: %.1f Mbit/s of %d", moved, took.Round(time.Millisecond), rate, mbit)
	if moved < size {
		t.Errorf("%.0f bytes came, of an image of %d", moved, size)
	}
	if rate > mbit*1.05 {
		t.Errorf("%.1f Mbit/s came over a link of %d", rate, mbit)
	}
	var links struct {
		Links []struct {
			From     string
			Received int64  `json:"received_bytes"`
			Left     int64  `json:"left_bytes"`
			Mbit     uint32 `json:"mbit"`
		}
	}
	out := m.Must(t, 1, "transfers", "--json")
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, l := range links.Links {
		if sum += l.Received; l.Left != 0 || l.From == from && l.Mbit != mbit || l.From == capped {
			t.Errorf("when all is here, the link from %s has %d bytes to come and a cap of %d Mbit/s", l.From, l.Left, l.Mbit)
		}
	}
	if sum < size {
		t.Errorf("the links brought %d bytes, of an image of %d: %s", sum, size, out)
	}
	m.Must(t, 0, "budget", "delete", "--from", from, "--to", capped)
}

package transfer_test

import (
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

// TestSlowRule_HoldsUpNoOther: more images of a rule with a bandwidth are under way
// than have places, each of which would take minutes. What another rule brings to the
// same site comes meanwhile.
func TestSlowRule_HoldsUpNoOther(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "slow", Projects: []string{"prod"}, Repositories: []string{"large/*"}, Sites: []string{"nyc"}, Bandwidth: 200_000, Priority: 10})
	b.rule(&command.Rule{Name: "quick", Projects: []string{"prod"}, Repositories: []string{"small/*"}, Sites: []string{"nyc"}})
	var large []image
	for i := range 24 {
		layer := make([]byte, 4<<20)
		_, _ = rand.Read(layer)
		large = append(large, fra.pushLayers(pid, fmt.Sprint("large/", i), "", []string{"1"}, layer))
	}
	eventually(t, "the slow rule brings something", func() bool {
		for _, img := range large {
			for _, d := range img.blobs {
				if nyc.class(d) != 0 {
					return true // a config
				}
			}
		}
		return false
	})
	for i := range 50 {
		layer := make([]byte, 100<<10) // too large to come with many others in one answer
		_, _ = rand.Read(layer)
		img := fra.pushLayers(pid, fmt.Sprint("small/", i), "", []string{"1"}, layer)
		eventually(t, fmt.Sprintf("small image %d", i), func() bool { return nyc.holds(img) })
	}
	// At its bandwidth, one of the large ones takes three minutes.
	for _, img := range large {
		if nyc.holds(img) {
			t.Fatal("a large image is there already: the test proves nothing")
		}
	}
}

package node

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/portolan/portolan/registryapi/mesh"
)

func TestWatch_SaysWhatLasts(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	var w watch
	away := false
	for _, step := range []struct {
		after time.Duration
		alive bool
		says  string
	}{
		{0, true, ""},
		{time.Hour, false, ""}, // silent from now on
		{2*time.Hour - time.Second, false, ""},
		{2*time.Hour - time.Second, true, ""}, // heard for a moment: it counts from the start
		{2 * time.Hour, false, ""},
		{3*time.Hour - time.Second, false, ""},
		{3 * time.Hour, false, "away"},
		{3*time.Hour + time.Second, false, ""}, // said already
		{4 * time.Hour, true, ""},
		{4*time.Hour + 59*time.Second, true, ""},
		{4*time.Hour + time.Minute, true, "back"},
	} {
		says := ""
		for _, s := range w.look(start.Add(step.after), []heardOf{{id: 1, away: away, alive: step.alive}, {id: 2, alive: true}}) {
			if s.id != 1 {
				t.Errorf("after %s it speaks of another site", step.after)
			}
			away, says = !s.alive, map[bool]string{true: "back", false: "away"}[s.alive]
		}
		if says != step.says {
			t.Errorf("after %s: it says %q, want %q", step.after, says, step.says)
		}
	}
}

// A site that is silent for an hour is called away by the leader, everywhere,
// and no more when it is back.
func TestNode_CallsASilentSiteAway(t *testing.T) {
	fra, nyc := newMachine(t), newMachine(t)
	fra.start("--site", "fra")
	nyc.join(fra.token("nyc"))
	nyc.start()
	called := func(away bool, step time.Duration) func() error {
		return func() error {
			// The leader looks now and then: between two looks its clock goes on.
			fra.ahead.Add(int64(step))
			body, err := fra.get("/api/mesh/v1/sites/nyc")
			if err != nil {
				return err
			}
			var s mesh.Site
			if err := json.Unmarshal(body, &s); err != nil {
				return err
			}
			if s.AwayAt.IsZero() == away {
				return fmt.Errorf("away since %s, want %v", s.AwayAt, away)
			}
			return nil
		}
	}
	nyc.mustStop()
	fra.await("nyc called away", called(true, time.Minute))
	nyc.launch()
	fra.await("nyc counted on again", called(false, time.Second))
	nyc.mustStop()
	fra.mustStop()
}

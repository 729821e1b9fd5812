package mesh

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// told is what a site answered to pushes by one tag.
type told struct {
	last   string   // digest of the last that was taken
	unsure []string // those after it of which nobody knows whether they were
}

// pushing pushes at some sites, each by five tags of its own, until the function that it
// returns is called, which gives what was answered, before as well.
func (m mesh) pushing(t *testing.T, repository, text string, before map[string]told, sites ...int) (end func() map[string]told) {
	t.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		all  = maps.Clone(before)
		stop = make(chan struct{})
	)
	for _, i := range sites {
		wg.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				tag := fmt.Sprintf("site%d-%d", i, k%5)
				a, err := m.put(t, i, repository, tag, fmt.Sprint(text, i, k), nil)
				mu.Lock()
				was := all[tag]
				switch {
				case err != nil:
					t.Errorf("a push at %s, which lives: %v", m.Sites[i].Name, err)
				case a.status == http.StatusCreated:
					was = told{last: a.digest}
				case a.status == http.StatusServiceUnavailable:
					if a.digest != "" {
						was.unsure = append(was.unsure, a.digest)
					}
				default:
					t.Errorf("a push at %s: %d %s", m.Sites[i].Name, a.status, a.body)
				}
				all[tag] = was
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return func() map[string]told {
		close(stop)
		wg.Wait()
		return all
	}
}

// TestSwitch_SitesAreKilled: while the tags switch each site is killed once at least, the
// leader and the one that carries the switch out among them: the switch ends when all are
// back, and what was answered, before and meanwhile, is what the tags say everywhere.
func TestSwitch_SitesAreKilled(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	m.Must(t, 0, "project", "create", "prod")
	modes := []string{"strong", "eventual"}
	pushed := map[string]told{}
	for round := range 6 {
		mode, victim := modes[round%2], round%3
		by, third := (victim+1)%3, (victim+2)%3
		waits := round >= 2 // for the third site, which is away: the switch is surely under way
		want := map[string]told{}
		for _, i := range []int{victim, third} {
			tag := fmt.Sprintf("before-%d-%d", round, i)
			want[tag] = told{last: m.mustPut(t, i, "prod/app", tag, tag)}
		}
		alive := []int{by}
		if waits {
			m.KillSite(t, third)
		} else {
			alive = append(alive, third)
		}
		end := m.pushing(t, "prod/app", fmt.Sprint("round ", round, " "), pushed, alive...)
		said := ""
		cluster.Eventually(t, cluster.Patience, "the switch to "+mode+" begins", func() error {
			r := m.CLI(t, by, "project", "tags", "prod", mode)
			if said = r.Stdout + r.Stderr; r.Code != 0 {
				return errors.New(said) // the third site led, and no other does yet
			}
			return nil
		})
		if waits && !strings.Contains(said, "switching to "+mode) {
			t.Errorf("round %d: a switch without a site that is away: %s", round, said)
		}
		m.KillSite(t, victim)
		m.RestartSite(t, victim)
		if waits {
			m.RestartSite(t, third)
		}
		cluster.Eventually(t, cluster.Patience, "the switch to "+mode+" ends", func() error {
			r := m.CLI(t, victim, "project", "tags", "prod", mode, "--wait")
			if r.Code != 0 {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		for i := range m.Sites { // all take pushes again
			tag := fmt.Sprintf("after-%d-%d", round, i)
			want[tag] = told{last: m.mustPut(t, i, "prod/app", tag, tag)}
		}
		pushed = end()
		maps.Copy(want, pushed)
		for tag, w := range want {
			cluster.Eventually(t, cluster.Patience, tag+" is what was answered, everywhere", func() error {
				var said []string
				for i := range m.Sites {
					d, err := m.says(t, i, "prod/app", tag, false)
					if err != nil {
						return err
					}
					if d != w.last && !slices.Contains(w.unsure, d) {
						return fmt.Errorf("round %d: %s is %q at %s; answered was %q, unsure are %s", round, tag, d, m.Sites[i].Name, w.last, strings.Join(w.unsure, ", "))
					}
					said = append(said, d)
				}
				if len(slices.Compact(said)) != 1 {
					return fmt.Errorf("round %d: %s differs: %v", round, tag, said)
				}
				return nil
			})
		}
	}
}

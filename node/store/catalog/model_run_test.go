package catalog

import (
	"flag"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

var histories = flag.Int("histories", 40, "random histories of TestModel, about 0.1 s each")

var modelSeed = flag.Uint64("seed", 0, "run TestModel's history of this seed alone")

func TestModel(t *testing.T) {
	if *modelSeed != 0 {
		for range 20 { // clients that write at once make each run another
			if err := newFleet(t, mistakes{}).run(t.Context(), *modelSeed, 60, mistakes{}); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	f := newFleet(t, mistakes{})
	base := uint64(time.Now().UnixNano())
	for i := range *histories {
		if err := f.run(t.Context(), base+uint64(i), 60, mistakes{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestModel_FindsPlantedMistakes shows that the model would not pass with a
// catalogue, or a carrier of pages, that is wrong, and that what it says names the
// rule that is broken: each of the catalogue's fifteen has a mistake at least.
func TestModel_FindsPlantedMistakes(t *testing.T) {
	planted := map[string]bool{}
	for name, bad := range plantedMistakes() {
		rule, _, _ := strings.Cut(name, ":")
		planted[rule] = true
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, bad)
			start := time.Now()
			const most = 300
			for i := range uint64(most) {
				err := f.run(t.Context(), seedFor(rule, i), 60, bad)
				if err == nil {
					continue
				}
				if got := rules.FindString(err.Error()); got != rule {
					t.Fatalf("found, and as %q: %s", got, firstLine(err))
				}
				t.Logf("found in history %d after %v: %s", i, time.Since(start).Round(time.Millisecond), firstLine(err))
				return
			}
			t.Errorf("not found in %d histories", most)
		})
	}
	for n := 1; n <= 15; n++ {
		if rule := fmt.Sprint("rule ", n); !planted[rule] {
			t.Errorf("no mistake is planted that breaks %s", rule)
		}
	}
}

// rules are what an error may name: the first is what is broken.
var rules = regexp.MustCompile(`(rule|invariant) \d+`)

// seedFor gives the seeds of histories in which one can tell that a rule is broken.
// What is wrong with a merge looks like a purge where tombstones were purged: there
// is none in even ones. Every fourth has strong tags as well.
func seedFor(rule string, i uint64) uint64 {
	switch rule {
	case "rule 1", "rule 2", "rule 4", "rule 5", "rule 8":
		return 4*i + 2
	case "invariant 20":
		return i
	default:
		return 2*i + 1
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return strings.ToValidUTF8(line, "?")
}

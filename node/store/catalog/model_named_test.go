package catalog

import (
	"strings"
	"testing"
	"time"
)

// TestModel_NamesTheRule: what breaks one of these rules is found, and by its number.
func TestModel_NamesTheRule(t *testing.T) {
	lastComes := func(here, in *entry, purged Vector) *entry {
		out := merge(here, in, purged)
		for i := range out.sibs {
			if s := &out.sibs[i]; here != nil && !here.has(s.dot) {
				s.stamp = max(s.stamp, here.nextStamp(time.Time{}))
			}
		}
		return out
	}
	for name, bad := range map[string]mistakes{
		"rule 3: what comes last wins":                                {merge: lastComes},
		"rule 3: readers see the write that came first":               {ruleMistakes: ruleMistakes{readOldest: true}},
		"rule 9: a manifest and its tags are two requests":            {ruleMistakes: ruleMistakes{twoRequests: true}},
		"rule 9: an index does not add its children again":            {ruleMistakes: ruleMistakes{childless: true}},
		"rule 9: a page leaves out entries of a request":              {ruleMistakes: ruleMistakes{tear: true}},
		"rule 10: pages leave out manifests' bytes":                   {ruleMistakes: ruleMistakes{noBytes: true}},
		"rule 12: entries of an unknown project are taken in":         {ruleMistakes: ruleMistakes{takeUnknown: true}},
		"rule 12: content goes with the deletion":                     {ruleMistakes: ruleMistakes{dropDeleted: true}},
		"rule 12: entries are given to who has let go of the project": {ruleMistakes: ruleMistakes{giveToPurged: true}},
		"rule 13: what a wrong clock wrote is sent as it is":          {ruleMistakes: ruleMistakes{wrongStamps: true}},
		"rule 15: who names content of another project may have it":   {ruleMistakes: ruleMistakes{believe: true}},
	} {
		t.Run(name, func(t *testing.T) {
			rule, _, _ := strings.Cut(name, ":")
			f := newFleet(t, bad)
			start := time.Now()
			const most = 300
			for i := range uint64(most) {
				// Every fourth history has strong tags as well, which says of most mistakes
				// that stores do not come to the same.
				err := f.run(t.Context(), i/3*4+i%3+1, 60, bad)
				if err == nil {
					continue
				}
				if !strings.Contains(err.Error(), rule+": ") {
					t.Fatalf("found, and not by its number: %s", firstLine(err))
				}
				t.Logf("found in history %d after %v: %s", i, time.Since(start).Round(time.Millisecond), firstLine(err))
				return
			}
			t.Errorf("not found in %d histories", most)
		})
	}
}

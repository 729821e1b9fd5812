package mesh

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// TestProjectDelete_AsksTheOthers: site 1 never heard of an image that site 2 took, and
// does not delete its project without force: neither while site 2 is away, nor when
// it is back.
func TestProjectDelete_AsksTheOthers(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	m.Must(t, 0, "project", "create", "prod")
	m.Must(t, 0, "project", "sites", "prod", "site1,site2") // site 3 votes, and passes nothing on
	cluster.Eventually(t, cluster.Patience, "site 3 is out", func() error {
		s, err := m.standing(t, 0, "prod", "site3")
		if err == nil && s != "out" {
			err = fmt.Errorf("it is %s", s)
		}
		return err
	})
	m.KillSite(t, 0)
	m.mustPut(t, 1, "prod/app", "1", "only site 2 has it")
	m.KillSite(t, 1)
	m.RestartSite(t, 0)
	remove := func(i int) (int, string, error) {
		status, body, err := m.Do(t, i, http.MethodDelete, "/api/v2.0/projects/prod", nil, nil)
		return status, string(body), err
	}
	await := func(what string, i, status int, text string) {
		t.Helper()
		cluster.Eventually(t, cluster.Patience, what, func() error {
			got, body, err := remove(i)
			if err == nil && got == http.StatusOK {
				t.Fatalf("%s: the project was deleted", what)
			}
			if err == nil && (got != status || !strings.Contains(body, text)) {
				err = fmt.Errorf("%d %s", got, body)
			}
			return err
		})
	}
	await("site 2 is away", 0, http.StatusServiceUnavailable, "may have repositories at site site2, which does not answer")
	await("asked at a site that may not hold it", 2, http.StatusServiceUnavailable, "ask at another of its sites")
	m.RestartSite(t, 1)
	await("site 2 is back", 0, http.StatusPreconditionFailed, "has repositories, prod/app among them")
	// Sites that came back may be electing a leader still, which an edit needs.
	cluster.Eventually(t, cluster.Patience, "it is deleted by force", func() error {
		status, body, err := m.Do(t, 0, http.MethodDelete, "/api/v2.0/projects/prod?force=true", nil, nil)
		switch {
		case err != nil || status == http.StatusOK:
			return err
		case status != http.StatusServiceUnavailable || !strings.Contains(string(body), "nothing was changed"):
			t.Fatalf("by force: %d %s", status, body)
		}
		return fmt.Errorf("%d %s", status, body)
	})
}

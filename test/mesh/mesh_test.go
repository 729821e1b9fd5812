package mesh

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// TestMesh_EndToEnd is the tour of README.md: three sites, docker pushes at
// one and pulls at another, a rule brings images everywhere, a fourth site
// joins, a killed site comes back.
func TestMesh_EndToEnd(t *testing.T) {
	set := images.Make(t)
	here, there := clients.Docker(t), clients.Docker(t)
	m := mesh{cluster.StartDev(t, 3)}

	t.Run("docker pushes at site 1 and pulls at site 3", func(t *testing.T) {
		name := m.Sites[0].Host() + "/library/app:1.0"
		here.Load(t, set.Layout("app"), name)
		here.Login(t, m.Sites[0].Host(), m.Username, m.Password)
		here.Run(t, "push", name)
		pushed := time.Now()
		for i := 1; i < 3; i++ {
			cluster.Eventually(t, cluster.Patience, "the tag is listed at "+m.Sites[i].Name, func() error {
				return m.hasTag(t, i, "library/app", "1.0")
			})
		}
		t.Logf("the tag was listed at both other sites %s after the push", time.Since(pushed).Round(time.Millisecond))

		before := m.received(t, 2)
		remote := m.Sites[2].Host() + "/library/app:1.0"
		there.Run(t, "pull", remote) // library is public: no login
		if a, b := imageID(t, here, name), imageID(t, there, remote); a != b {
			t.Fatalf("image pushed is %s, image pulled is %s", a, b)
		}
		fetched := m.received(t, 2)
		if fetched == before {
			t.Fatal("site 3 had nothing of the image, and yet no bytes came over the data plane")
		}
		there.Run(t, "image", "rm", remote)
		there.Run(t, "pull", remote)
		if again := m.received(t, 2); again != fetched {
			t.Fatalf("the second pull moved %v bytes between sites, want none", again-fetched)
		}
	})

	t.Run("skopeo, crane and podman push and pull", func(t *testing.T) {
		m.otherClients(t, set)
	})

	t.Run("an edit at site 2 is in force everywhere", func(t *testing.T) {
		m.Must(t, 1, "project", "create", "prod")
		m.Must(t, 1, "user", "create", "ann", "--password", "Ann-secret-1")
		m.Must(t, 1, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
		for i := range m.Sites {
			cluster.Eventually(t, cluster.Patience, "the edit is in force at "+m.Sites[i].Name, func() error {
				for _, q := range [][]string{{"project", "show", "prod"}, {"user", "show", "ann"}, {"rule", "show", "everywhere"}} {
					if r := m.CLI(t, i, q...); r.Code != 0 {
						return fmt.Errorf("%v: %s", q, r.Stderr)
					}
				}
				return nil
			})
		}
		// A new user may sign in at once, anywhere; a private project is not hers.
		status := m.status(t, 2, "/v2/prod/app/tags/list", "ann", "Ann-secret-1")
		if status != http.StatusForbidden && status != http.StatusUnauthorized {
			t.Fatalf("a stranger to the project got %d", status)
		}
	})

	t.Run("a rule brings every push to every site", func(t *testing.T) {
		m.skopeoPush(t, 0, set.Layout("app"), "prod/app:1.0")
		m.skopeoPush(t, 1, set.Layout("multi"), "prod/multi:1")
		for _, image := range []string{"prod/app:1.0", "prod/multi:1"} {
			m.Must(t, 2, "wait", image, "--sites", "all", "--timeout", "60s")
		}
		where := m.Must(t, 1, "where", "prod/app:1.0")
		for _, s := range m.Sites {
			if !strings.Contains(where, s.Name) {
				t.Errorf("where does not name %s:\n%s", s.Name, where)
			}
		}
		// Nobody but its own site has this one, and no rule will bring it anywhere.
		m.skopeoPush(t, 0, set.Layout("base"), "library/only-here:1")
		began := time.Now()
		r := m.CLI(t, 0, "wait", "library/only-here:1", "--sites", "all", "--timeout", "60s")
		if r.Code != 1 || !strings.Contains(r.Stderr, "site2") || !strings.Contains(r.Stderr, "site3") {
			t.Errorf("wait for an image that no rule places ended with %d, want 1 and the sites named:\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("a site that no rule covers was named after %s, not at once", took)
		}
	})

	var fourth *cluster.Process
	t.Run("a fourth site joins", func(st *testing.T) {
		fourth = m.join(t, 1, "sgp") // it lives as long as the others
		t := st
		i := len(m.Sites) - 1
		m.Must(t, 1, "project", "create", "later", "--public")
		cluster.Eventually(t, cluster.Patience, "an edit at site 2 is in force at the new site", func() error {
			if r := m.CLI(t, i, "project", "show", "later"); r.Code != 0 {
				return fmt.Errorf("%s", r.Stderr)
			}
			return nil
		})
		m.Must(t, i, "wait", "prod/app:1.0", "--sites", "sgp", "--timeout", "60s")
		image := m.Sites[i].Host() + "/library/app:1.0"
		there.Run(t, "pull", image)
		if a, b := imageID(t, here, m.Sites[0].Host()+"/library/app:1.0"), imageID(t, there, image); a != b {
			t.Fatalf("image pushed is %s, image pulled at the new site is %s", a, b)
		}
	})

	t.Run("any one site may die", func(t *testing.T) {
		for victim := range 3 {
			m.loseAndRegain(t, victim, set)
		}
	})

	t.Run("everything stops cleanly", func(t *testing.T) {
		fourth.Stop(t)
		if err := fourth.Err(); err != nil {
			t.Errorf("the fourth site ended with %v", err)
		}
		m.Dev.Stop(t)
		if err := m.Dev.Err(); err != nil {
			t.Errorf("portolan dev ended with %v", err)
		}
	})
}

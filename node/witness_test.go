package node

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/portolan/portolan/registryapi/mesh"
)

// joinAsWitness makes the machine a member without content.
func (m *machine) joinAsWitness(token string) {
	m.t.Helper()
	s, err := m.settings("--witness")
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := Join(m.t.Context(), JoinConfig{Settings: s, Token: token, Version: "test", Say: func(string) {}, Now: m.now}); err != nil {
		m.t.Fatal(err)
	}
}

// TestRun_Witness_StopsWithoutTrace: a witness makes three votes of two sites,
// has no store and no data port, and starts again as what it is.
func TestRun_Witness_StopsWithoutTrace(t *testing.T) {
	ams, fra, wit := newMachine(t), newMachine(t), newMachine(t)
	ams.start("--site", "ams")
	fra.join(ams.token("fra"))
	fra.start()
	known := goleak.IgnoreCurrent()
	wit.joinAsWitness(ams.token("wit"))
	for round := range 2 {
		wit.start()
		for _, m := range []*machine{ams, fra, wit} {
			m.await("three voters", func() error {
				s, err := m.status()
				if err == nil && len(s.Voters) != 3 {
					err = fmt.Errorf("%d of %d", len(s.Voters), s.VotersWanted)
				}
				return err
			})
			m.await("the round trips", func() error {
				s, err := m.status()
				if err == nil && len(s.RoundTrips) != 6 {
					err = fmt.Errorf("%v", s.RoundTrips)
				}
				return err
			})
		}
		s, err := wit.status()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(s.Sites, func(s mesh.SiteStatus) bool { return s.Name == "wit" })
		if i < 0 || len(s.Sites[i].Nodes) != 1 || !s.Sites[i].Nodes[0].Witness || s.Role != "voter" {
			t.Fatalf("%+v", s)
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(wit.ports[3])))
		if err != nil {
			t.Errorf("the witness has a data port: %v", err)
		} else {
			_ = l.Close()
		}
		if err := ams.createProject(fmt.Sprintf("p%d", round)); err != nil {
			t.Fatal(err)
		}
		if body, err := wit.do(http.MethodPost, mesh.Prefix+"/tokens", mesh.TokenRequest{Site: "x"}); err == nil {
			t.Errorf("the witness takes edits: %s", body)
		}
		wit.mustStop()
	}
	if slices.Contains(entries(t, wit.dir), storeDir) {
		t.Error("the witness has a store")
	}
	if _, err := wit.settings("--witness=false"); err == nil || !strings.Contains(err.Error(), "does not change its kind") {
		t.Errorf("a witness was started as a node with content: %v", err)
	}
	if _, err := fra.settings("--witness"); err == nil || !strings.Contains(err.Error(), "does not change its kind") {
		t.Errorf("a node with content was started as a witness: %v", err)
	}
	fra.mustStop()
	ams.mustStop()
	ams.await("no goroutine is left", func() error { return goleak.Find(known) })
}

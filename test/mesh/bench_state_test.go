package mesh

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

const (
	// mostMemory is what the large state may cost, in MiB; mostRestart what a start
	// with it may take, in seconds.
	mostMemory, mostRestart = 100, 3
	// mostJoin is what a join may take beside the time that its bytes take, in s.
	mostJoin = 10
	// snapshotWithin bounds the wait for raft's next snapshot: it takes one 2 to 4
	// minutes after its start.
	snapshotWithin = 6 * time.Minute
)

// state: what 10,000 users, 5,000 projects and 50,000 grants cost a node in memory
// and at its start, from the log alone and from a snapshot.
func (b *controlBench) state(t *testing.T) {
	a := newAlone(t)
	ref, err := name.ParseReference(a.url[len("http://"):]+"/library/app:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(4096, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "admin", Password: wanPassword})); err != nil {
		t.Fatal(err)
	}
	b.restart(t, a, "empty", "library", nil)
	pause(t, idle)
	empty := memory(t, a.process.Cmd.Process.Pid)
	b.report(t, "state: RSS of an empty mesh's node", empty, "MiB", nil, "")

	rate := fill(t, a.data, a.control, (&net.Dialer{}).DialContext, manyGrants)
	b.report(t, "state: edits per second that filled it", rate, "1/s", nil, fmt.Sprintf("one voter, %d clients over gRPC", fillers))
	pause(t, idle)
	b.report(t, "state: RSS above empty, after the edits", memory(t, a.process.Cmd.Process.Pid)-empty, "MiB", nil, "what the collector has not given back yet is in it")
	last := projectName(manyProjects - 1)
	most := figures.AtMost(mostRestart)
	b.restart(t, a, "from the log", last, most)
	pause(t, idle)
	b.report(t, "state: RSS above empty", memory(t, a.process.Cmd.Process.Pid)-empty, "MiB", figures.AtMost(mostMemory), "started again, idle")

	cluster.Eventually(t, snapshotWithin, "raft takes a snapshot", func() error {
		metas, err := filepath.Glob(filepath.Join(a.data, "raft", "snapshots", "*", "meta.json"))
		if err == nil && len(metas) == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	b.restart(t, a, "from a snapshot", last, most)
	pause(t, idle)
	b.report(t, "state: RSS above empty, started from a snapshot", memory(t, a.process.Cmd.Process.Pid)-empty, "MiB", figures.AtMost(mostMemory), "")
}

// restart kills the node and starts it again. It measures until a pull is
// answered, until the state is whole (its last project is read), and until an
// edit is made.
func (b *controlBench) restart(t *testing.T, a *alone, how, lastProject string, target *figures.Target) {
	t.Helper()
	admin, err := a.self(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.process.Kill()
	a.client.CloseIdleConnections()
	start := time.Now()
	a.start(t)
	a.await(t, "/v2/library/app/manifests/1")
	pulled := time.Since(start)
	a.await(t, "/api/v2.0/projects/"+lastProject)
	whole := time.Since(start)
	cluster.Eventually(t, cluster.Patience, "an edit is made", func() error { return a.edit(t.Context(), admin, how) })
	edited := time.Since(start)
	a.await(t, "/readyz")
	ready := time.Since(start)
	b.report(t, "restart "+how+": pulls answered", pulled.Seconds(), "s", target, "kill -9 before")
	b.report(t, "restart "+how+": state whole", whole.Seconds(), "s", target, "")
	b.report(t, "restart "+how+": edits made", edited.Seconds(), "s", target, "")
	b.report(t, "restart "+how+": ready", ready.Seconds(), "s", nil, "")
}

// fifthSite: a site joins a mesh of four with 10,000 users and 5,000 projects, all
// of it in the log, over links of 80 ms and 100 Mbit/s.
func (b *controlBench) fifthSite(t *testing.T) {
	const rtt, rate = 80 * wan.Millisecond, 100 * wan.Mbit
	topo := wan.Topo{Default: wan.Params{RTT: rtt}}
	for i := range 5 {
		topo.Sites = append(topo.Sites, wan.Site{Name: fmt.Sprintf("s%d", i), Egress: rate, Ingress: rate})
	}
	lab := wan.Start(t, topo)
	sites := []*farSite{startFar(t, lab, "s0", "serve", "--site", "s0", "--profile", "wan")}
	for i := 1; i < 4; i++ {
		sites = append(sites, startFar(t, lab, topo.Sites[i].Name, "join", sites[0].token(t, topo.Sites[i].Name)))
	}
	leader := leading(t, sites)
	fill(t, leader.data, lab.Addr(leader.site)+":7947", lab.Dialer(leader.site), 0)
	last := "/api/v2.0/projects/" + projectName(manyProjects-1)
	for _, s := range sites {
		cluster.Eventually(t, cluster.Patience, "the state is whole at "+s.site, func() error {
			_, err := s.asker().want(t.Context(), http.MethodGet, last, "")
			return err
		})
	}
	token := sites[1].token(t, "s4")
	lab.Stats(true)
	start := time.Now()
	fifth := startFar(t, lab, "s4", "join", token)
	ready := time.Since(start)
	cluster.Eventually(t, cluster.Patience, "the state is whole at the fifth site", func() error {
		_, err := fifth.asker().want(t.Context(), http.MethodGet, last, "")
		return err
	})
	whole := time.Since(start)
	st := lab.Stats(false)
	bytes := st.Site("s4").IngressBytes
	transfer := float64(bytes) * 8 / float64(rate)
	b.report(t, "join of a fifth site: ready, above the transfer's time", ready.Seconds()-transfer, "s", figures.AtMost(mostJoin),
		fmt.Sprintf("%.1f MB at %d Mbit/s, 80 ms; the machine %.0f %% busy", float64(bytes)/1e6, rate/wan.Mbit, 100*st.MachineCPU))
	b.report(t, "join of a fifth site: state whole", whole.Seconds(), "s", nil, fmt.Sprintf("%d users, %d projects", manyUsers, manyProjects))
}

// token makes a join token for a site.
func (f *farSite) token(t *testing.T, site string) string {
	t.Helper()
	var made struct{ Token string }
	r := f.cli(t, "token", "create", "--site", site, "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &made); err != nil || made.Token == "" {
		t.Fatalf("token create --json: %v: %s%s", err, r.Stdout, r.Stderr)
	}
	return made.Token
}

func (f *farSite) asker() asker {
	return asker{url: "http://" + f.host, password: wanPassword, client: &http.Client{Transport: f.transport}}
}

// leading waits until the sites have three voters and one of them leads.
func leading(t *testing.T, sites []*farSite) (leader *farSite) {
	t.Helper()
	cluster.Eventually(t, cluster.Patience, "three vote and one leads", func() error {
		leader = nil
		for _, s := range sites {
			voters, err := s.asker().metric(t.Context(), "portolan_consensus_voters")
			if err != nil {
				return err
			}
			leads, err := s.asker().metric(t.Context(), "portolan_consensus_leader")
			if err != nil {
				return err
			}
			if leads == 1 {
				leader = s
			}
			if voters != 3 {
				return fmt.Errorf("%g voters at %s", voters, s.site)
			}
		}
		if leader == nil {
			return fmt.Errorf("nobody leads")
		}
		return nil
	})
	return leader
}

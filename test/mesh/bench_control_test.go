package mesh

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
)

var (
	benchControl = flag.Bool("control.bench", false, "measure the control plane of real processes, for minutes")
	controlRun   = flag.String("control.run", "", "the cases whose name matches this expression")
	controlSoak  = flag.Duration("control.soak", 10*time.Minute, "how long a soak takes")
	controlOut   = flag.String("control.out", "", "file for the results as JSON lines")
)

// TestBenchControl measures what consensus promises of real processes, beside its
// targets: `make bench-control` runs it.
func TestBenchControl(t *testing.T) {
	if !*benchControl {
		t.Skip("measured by `make bench-control` (-control.bench)")
	}
	only, err := regexp.Compile(*controlRun)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		run  func(*controlBench, *testing.T)
	}{
		{"state", (*controlBench).state},
		{"fifth site", (*controlBench).fifthSite},
		{"soak saturated", (*controlBench).soakSaturated},
	} {
		if only.MatchString(c.name) {
			b := &controlBench{}
			t.Run(c.name, func(t *testing.T) { c.run(b, t) })
			if *controlOut != "" {
				if err := figures.Save(*controlOut, b.rows); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// controlBench is one case's figures.
type controlBench struct{ rows []figures.Row }

func (b *controlBench) report(t *testing.T, name string, got float64, unit string, target *figures.Target, note string) {
	t.Helper()
	b.rows = append(b.rows, figures.New(name, got, unit, target, note))
	t.Logf("%s: %.4g %s %s", name, got, unit, note)
}

// The mesh that the targets speak of.
const (
	manyUsers, manyProjects, manyGrants = 10_000, 5_000, 50_000
	// fillers edit at a time: as many as keep batches full over slow links.
	fillers = 512
)

func userName(i int) string    { return fmt.Sprintf("user-%05d", i) }
func projectName(i int) string { return fmt.Sprintf("project-%05d", i) }

// fill makes users, projects and, above one for each project's owner, grants: as
// any member may, over the control port of the node that leads. It gives the
// edits per second.
func fill(t *testing.T, data, control string, dial func(context.Context, string, string) (net.Conn, error), grants int) float64 {
	t.Helper()
	id, _, err := identity.LoadOrCreate(data)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+control, grpc.WithTransportCredentials(wire.Credentials(id, id.ID)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := consensus.NewControlClient(conn)
	propose := func(body proto.Message) (int64, error) {
		env, err := command.New("user:admin", time.Now(), body)
		if err != nil {
			return 0, err
		}
		rep, err := client.Propose(t.Context(), &consensus.ProposeRequest{Envelope: env})
		return rep.GetId(), err
	}
	each := func(n int, one func(i int) error) {
		t.Helper()
		var next atomic.Int64
		var wg sync.WaitGroup
		errs := make([]error, fillers)
		for w := range fillers {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
					errs[w] = one(i)
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	users, projects := make([]int64, manyUsers), make([]int64, manyProjects)
	start := time.Now()
	each(manyUsers, func(i int) (err error) {
		users[i], err = propose(&command.UserCreate{Name: userName(i), Email: userName(i) + "@example.org", RealName: fmt.Sprintf("Person Number %d", i),
			PasswordHash: "$argon2id$v=19$m=19456,t=2,p=1$" + fmt.Sprintf("%022d$%043d", i, i)})
		return err
	})
	each(manyProjects, func(i int) (err error) {
		pid := identity.NewProjectID()
		projects[i], err = propose(&command.ProjectCreate{ProjectId: pid[:], Name: projectName(i), OwnerId: users[i]})
		return err
	})
	each(max(0, grants-manyProjects), func(i int) error {
		p := i % manyProjects
		_, err := propose(&command.MemberSet{ProjectId: projects[p], UserId: users[(p+1+i/manyProjects)%manyUsers], Role: 2})
		return err
	})
	return float64(manyUsers+manyProjects+max(0, grants-manyProjects)) / time.Since(start).Seconds()
}

// asker sends requests of the administrator to one node.
type asker struct {
	url, password string
	client        *http.Client
}

func (a asker) do(ctx context.Context, method, path, body string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth("admin", a.password)
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// want is do for requests that must succeed.
func (a asker) want(ctx context.Context, method, path, body string) ([]byte, error) {
	status, b, err := a.do(ctx, method, path, body)
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, b)
	}
	return b, err
}

// metric sums the lines of a metric.
func (a asker) metric(ctx context.Context, name string) (float64, error) {
	b, err := a.want(ctx, http.MethodGet, "/metrics", "")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	sc := bufio.NewScanner(strings.NewReader(string(b)))
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, sc.Err()
}

// edit makes the administrator's comment something new.
func (a asker) edit(ctx context.Context, user int64, text string) error {
	_, err := a.want(ctx, http.MethodPut, fmt.Sprintf("/api/v2.0/users/%d", user), fmt.Sprintf(`{"comment":%q}`, text))
	return err
}

// self is the administrator's id.
func (a asker) self(ctx context.Context) (int64, error) {
	b, err := a.want(ctx, http.MethodGet, "/api/v2.0/users/current", "")
	var u struct {
		ID int64 `json:"user_id"`
	}
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	return u.ID, err
}

// memory reads a process's resident set, in MiB.
func memory(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatalf("no VmRSS of process %d", pid)
	return 0
}

// idle is how long a node is left alone before its memory is read.
const idle = 15 * time.Second

func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}

func quantile(samples []time.Duration, q float64) float64 {
	s := slices.Clone(samples)
	slices.Sort(s)
	return float64(s[min(len(s)-1, int(q*float64(len(s))))].Microseconds()) / 1000
}

// alone is a mesh of one process on this machine, which is killed and started
// again on what it has.
type alone struct {
	asker
	args    []string
	data    string
	control string
	process *cluster.Process
}

func newAlone(t *testing.T) *alone {
	t.Helper()
	base := cluster.BasePort(t, 4)
	port := func(i int) string { return strconv.Itoa(base + i) }
	a := &alone{data: t.TempDir(), control: "127.0.0.1:" + port(2),
		asker: asker{url: "http://127.0.0.1:" + port(0), password: wanPassword, client: &http.Client{Transport: &http.Transport{}}}}
	t.Cleanup(a.client.CloseIdleConnections)
	a.args = []string{"serve", "--site", "ams", "--data", a.data, "--advertise", "127.0.0.1", "--http", "127.0.0.1:" + port(0),
		"--gossip-port", port(1), "--control-port", port(2), "--data-port", port(3)}
	a.start(t)
	a.await(t, "/readyz")
	return a
}

func (a *alone) start(t *testing.T) {
	t.Helper()
	a.process = cluster.Start(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + wanPassword}, a.args...)
}

// await waits until a GET is answered with 200.
func (a *alone) await(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(cluster.Patience); ; {
		_, err := a.want(t.Context(), http.MethodGet, path, "")
		if err == nil {
			return
		}
		select {
		case <-a.process.Exited():
			t.Fatalf("portolan ended: %v\n%s", a.process.Err(), a.process.Output())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", path, cluster.Patience, err)
		}
	}
}

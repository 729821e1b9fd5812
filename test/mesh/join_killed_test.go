package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// gate is an address in front of a node's control port. It passes so many bytes
// each way and holds the next: two processes stand still in the midst of what
// they say to one another.
type gate struct {
	l      net.Listener
	to     string
	mu     sync.Mutex
	limit  [2]int // bytes to the node, and from it; -1: all
	passed [2]int
	held   chan struct{} // closed when the limit is reached
	conns  []net.Conn
	wg     sync.WaitGroup
}

const (
	toNode = iota
	fromNode
)

func newGate(t testing.TB, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, to: to}
	g.set(-1, -1)
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.wg.Go(func() { g.carry(c) })
		}
	})
	t.Cleanup(func() { l.Close(); g.cut(); g.wg.Wait() })
	return g
}

func (g *gate) carry(client net.Conn) {
	defer client.Close()
	node, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", g.to)
	if err != nil {
		return
	}
	defer node.Close()
	g.mu.Lock()
	g.conns = append(g.conns, client, node)
	g.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { g.pass(toNode, node, client) })
	wg.Go(func() { g.pass(fromNode, client, node) })
	wg.Wait()
}

// pass copies until either end is gone. What is beyond the limit is read and
// goes nowhere.
func (g *gate) pass(way int, dst, src net.Conn) {
	defer dst.Close()
	b := make([]byte, 16<<10)
	for {
		n, err := src.Read(b)
		if err != nil {
			return
		}
		g.mu.Lock()
		if left := g.limit[way] - g.passed[way]; g.limit[way] >= 0 && n > left {
			n = left
			select {
			case <-g.held:
			default:
				close(g.held)
			}
		}
		g.passed[way] += n
		g.mu.Unlock()
		if _, err := dst.Write(b[:n]); err != nil {
			return
		}
	}
}

// set begins anew with other limits.
func (g *gate) set(toNode, fromNode int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit, g.passed, g.held = [2]int{toNode, fromNode}, [2]int{}, make(chan struct{})
}

// cut ends the connections.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

func (g *gate) sums() [2]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.passed
}

// TestJoin_Killed kills the joiner, or the mesh's node, with SIGKILL while one
// of them waits for the rest of what the other says: in the handshake, in the
// question, in the answer. The mesh has taken the node in, with its token, or
// knows nothing of it; the same join again comes to its end; and one that is
// never run again leaves a name that people can give to another.
func TestJoin_Killed(t *testing.T) {
	ams := newSeat(t)
	m := mesh{&cluster.Mesh{Username: "admin", Password: "correct horse battery", Sites: []cluster.Site{{Name: "ams", URL: "http://127.0.0.1:" + strconv.Itoa(ams.base), Data: ams.dir}}}}
	env := []string{"PORTOLAN_ADMIN_PASSWORD=" + m.Password}
	node := cluster.Start(t, env, append([]string{"serve", "--site", "ams"}, ams.flags()...)...)
	m.WaitReady(t, 0)
	g := newGate(t, ams.control())
	token := func(t *testing.T, site string) (int64, string) {
		t.Helper()
		id, text := m.tokenAt(t, 0, site)
		return id, bent(t, text, at(g.l.Addr().String()))
	}

	_, whole := token(t, "whole")
	first := newSeat(t)
	if r := cluster.RunCLI(t, nil, first.join(whole)...); r.Code != 0 {
		t.Fatalf("join: %s", r.Stderr)
	}
	sums := g.sums()
	t.Logf("a join takes %d bytes to the node and %d from it", sums[toNode], sums[fromNode])
	want := []string{"ams", "whole"}

	all := t // the node outlives the round that starts it again
	const cuts = 4
	tookIn := [2]int{} // and run again; and given up
	for i := range 4 * cuts {
		way, victim, part := i%2, i/2%2, i/4
		// From the first byte into the midst of what matters, the question or the
		// answer's end. Behind the question the joiner only says what it has received.
		limit := (sums[way] - [2]int{400, 40}[way]) * part / (cuts - 1)
		site := fmt.Sprintf("s%02d", i)
		name := fmt.Sprintf("%s: %s is killed after %d bytes %s", site, []string{"the joiner", "the mesh's node"}[victim], limit, []string{"to the node", "from the node"}[way])
		t.Run(name, func(t *testing.T) {
			id, text := token(t, site)
			limits := [2]int{-1, -1}
			limits[way] = limit
			g.set(limits[0], limits[1])
			s := newSeat(t)
			joiner := cluster.StartCommand(t, nil, exec.CommandContext(context.Background(), cluster.Binary(t), s.join(text)...))
			select {
			case <-g.held:
			case <-joiner.Exited():
				t.Fatalf("it ended before: %s", joiner.Output())
			}
			if victim == 0 {
				joiner.Kill()
				g.cut()
			} else {
				node.Kill()
				g.cut()
				<-joiner.Exited()
				if joiner.Err() == nil || !strings.Contains(joiner.Output(), "run the same join again") {
					t.Errorf("the joiner ended with %v and said: %s", joiner.Err(), joiner.Output())
				}
				node = cluster.Start(all, nil, "serve", "--data", ams.dir)
				m.WaitReady(t, 0)
			}
			g.set(-1, -1)
			if slices.Contains(s.left(t), "format") {
				t.Error("the directory says that it belongs to the mesh before the answer was there")
			}
			// The question may be on its way through the log yet.
			var taken bool
			cluster.Eventually(t, cluster.Patience, "the mesh knows it or does not", func() error {
				taken = slices.Contains(m.siteNames(t, 0), site)
				if state := m.tokenState(t, 0, id); (state == "used") != taken {
					return fmt.Errorf("a site %v, and the token is %s", taken, state)
				}
				return nil
			})
			again := (part+victim)%2 == 1
			if taken && again {
				tookIn[0]++
			} else if taken {
				tookIn[1]++
			}
			if !again {
				// It is never run again. What is left of it at the mesh is a name, and
				// that is free once people say so.
				if err := os.RemoveAll(s.dir); err != nil {
					t.Fatal(err)
				}
				if taken {
					m.Must(t, 0, "site", "remove", site, "--lost")
				}
				if got := m.siteNames(t, 0); !slices.Equal(got, want) {
					t.Fatalf("the sites are %v, want %v", got, want)
				}
				_, text = token(t, site)
				s = newSeat(t)
			}
			if r := cluster.RunCLI(t, nil, s.join(text)...); r.Code != 0 {
				t.Fatalf("the join again: %s", r.Stderr)
			}
			want = append(want, site)
			slices.Sort(want)
			if got := m.siteNames(t, 0); !slices.Equal(got, want) {
				t.Fatalf("the sites are %v, want %v", got, want)
			}
			if got, fresh := s.left(t), first.left(t); !slices.Equal(got, fresh) {
				t.Errorf("the directory holds %v, one whose join was whole %v", got, fresh)
			}
			if err := noLeftovers(s.dir); err != nil {
				t.Error(err)
			}
			if part == cuts-1 && way == fromNode {
				// And it serves, as that site.
				p := cluster.Start(t, nil, "serve", "--data", s.dir)
				k := len(m.Sites)
				m.Sites = append(m.Sites, cluster.Site{Name: site, URL: "http://127.0.0.1:" + strconv.Itoa(s.base), Data: s.dir})
				m.WaitReady(t, k)
				if err := m.hasProjects(t, k, "library"); err != nil {
					t.Error(err)
				}
				p.Stop(t)
				m.Sites = m.Sites[:k]
			}
		})
	}
	t.Logf("%d had been taken in and were run again, %d were given up", tookIn[0], tookIn[1])
	if tookIn[0] == 0 || tookIn[1] == 0 {
		t.Error("none was killed after the mesh had taken it in")
	}
}

// noLeftovers finds files of writes that did not come to their end.
func noLeftovers(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.Contains(filepath.Base(path), ".tmp-"):
			return errors.New("left behind: " + path)
		}
		return nil
	})
}

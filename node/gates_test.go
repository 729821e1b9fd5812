package node

import (
	"cmp"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
)

// gates are what stands between a node and the others: its host is another
// loopback address, where each of its ports is passed on to it as long as it is
// open. What was connected stays so when a port is shut, as behind a firewall.
type gates struct {
	t    *testing.T
	host string
	done sync.WaitGroup

	mu      sync.Mutex
	tcp     map[int]net.Listener // nil: shut
	conns   map[net.Conn]int     // by port
	udp     net.PacketConn
	noUDP   bool
	instead map[int]int // ports that are passed on to another node's
	longer  int         // packets above so many bytes are lost; 0: none are
	closed  bool
}

// openGates passes on the ports of m from host; m must be started with
// --advertise host.
func openGates(t *testing.T, m *machine, host string) *gates {
	t.Helper()
	g := &gates{t: t, host: host, tcp: map[int]net.Listener{}, conns: map[net.Conn]int{}, instead: map[int]int{}}
	for _, port := range m.ports {
		g.open(port)
	}
	var err error
	gossip := m.ports[1]
	if g.udp, err = net.ListenPacket("udp", net.JoinHostPort(host, strconv.Itoa(gossip))); err != nil {
		t.Fatal(err)
	}
	g.done.Go(func() { g.packets(gossip) })
	t.Cleanup(func() {
		g.mu.Lock()
		g.closed = true
		g.mu.Unlock()
		for _, port := range m.ports {
			g.shut(port)
			g.cut(port)
		}
		_ = g.udp.Close()
		g.done.Wait()
	})
	return g
}

func (g *gates) open(port int) {
	g.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(g.host, strconv.Itoa(port)))
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.tcp[port] = l
	g.mu.Unlock()
	g.done.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			to := cmp.Or(g.instead[port], port)
			g.mu.Unlock()
			out, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(to)))
			if err != nil {
				_ = in.Close()
				continue
			}
			g.join(port, in, out)
		}
	})
}

// join passes bytes on until one side ends.
func (g *gates) join(port int, a, b net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		_, _ = a.Close(), b.Close()
		return
	}
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		g.conns[pair[0]] = port
		g.done.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_, _ = a.Close(), b.Close()
			g.mu.Lock()
			delete(g.conns, pair[0])
			g.mu.Unlock()
		})
	}
}

// shut lets nobody in any more.
func (g *gates) shut(port int) {
	g.mu.Lock()
	l := g.tcp[port]
	g.tcp[port] = nil
	g.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
}

// lead passes a port on to another node's from now on; 0: to its own again.
func (g *gates) lead(port, to int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.instead[port] = to
}

// cut ends what is connected.
func (g *gates) cut(port int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c, p := range g.conns {
		if p == port {
			_ = c.Close()
		}
	}
}

// setPackets lets packets in or not, or only those that are not longer.
func (g *gates) setPackets(in bool, longer int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.noUDP, g.longer = !in, longer
}

// packets passes packets on, and answers back to whoever sent the question.
func (g *gates) packets(port int) {
	back := map[string]net.Conn{}
	defer func() {
		for _, c := range back {
			_ = c.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := g.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		lost := g.noUDP || g.longer > 0 && n > g.longer
		g.mu.Unlock()
		if lost {
			continue
		}
		out := back[from.String()]
		if out == nil {
			if out, err = net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
				continue
			}
			back[from.String()] = out
			g.done.Go(func() {
				answer := make([]byte, 64<<10)
				for {
					n, err := out.Read(answer)
					if err != nil {
						return
					}
					_, _ = g.udp.WriteTo(answer[:n], from)
				}
			})
		}
		_, _ = out.Write(buf[:n])
	}
}

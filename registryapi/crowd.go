package registryapi

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/wire/door"
)

const (
	// MaxConnections bounds the connections at a time: each costs some 10 KiB, 40
	// with TLS, while it asks for nothing. A fleet of thousands of machines keeps
	// one or two each, for 90 s. When there are more, one that asks for nothing
	// goes, of the address that has most.
	MaxConnections = 8 << 10
	// shareOfFiles is the part of the process's open files that the registry's
	// clients may take: the other half is for the control plane, the store and
	// the other sites, who must not feel it.
	shareOfFiles = 2
)

// maxConnections is MaxConnections, or less where the process may open few files.
func maxConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur/shareOfFiles > MaxConnections {
		return MaxConnections
	}
	return max(1, int(files.Cur/shareOfFiles))
}

// crowd is the connections to the registry.
type crowd struct {
	door    *door.Door
	dropped *prometheus.CounterVec
	open    prometheus.GaugeFunc

	mu     sync.Mutex
	guests map[net.Conn]*door.Guest
}

func newCrowd(limit int) *crowd {
	c := &crowd{guests: make(map[net.Conn]*door.Guest),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_registryapi_connections_dropped_total",
			Help: "Connections to the registry that were closed for want of room (busy), or ended without a request (silent: garbage, too slow, or no more than a look whether the port is open).",
		}, []string{"reason"}),
	}
	c.door = door.New(limit, 0, c.dropped.WithLabelValues("busy").Inc)
	c.open = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "portolan_registryapi_connections_count", Help: "Open connections to the registry.",
	}, func() float64 { return float64(c.door.Len()) })
	return c
}

type guestKey struct{}

// enter is part of http.Server.ConnContext: called once for each connection.
func (c *crowd) enter(ctx context.Context, conn net.Conn) context.Context {
	guest := c.door.Enter(transport(conn))
	if guest == nil {
		_ = transport(conn).Close() // all are at work
		return ctx
	}
	c.mu.Lock()
	c.guests[conn] = guest
	c.mu.Unlock()
	return context.WithValue(ctx, guestKey{}, guest)
}

// transport is the TCP connection: closing that of TLS may wait for its client.
func transport(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// state is http.Server.ConnState.
func (c *crowd) state(conn net.Conn, s http.ConnState) {
	if s != http.StateClosed && s != http.StateHijacked {
		return
	}
	c.mu.Lock()
	guest := c.guests[conn]
	delete(c.guests, conn)
	c.mu.Unlock()
	if guest.Leave() && !guest.Worked() {
		c.dropped.WithLabelValues("silent").Inc()
	}
}

// working keeps connections from being dropped while they have a request.
func (c *crowd) working(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guest, _ := r.Context().Value(guestKey{}).(*door.Guest)
		guest.Work()
		defer guest.Rest()
		next.ServeHTTP(w, r)
	})
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	s.crowd.dropped.Describe(ch)
	s.crowd.open.Describe(ch)
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	s.crowd.dropped.Collect(ch)
	s.crowd.open.Collect(ch)
}

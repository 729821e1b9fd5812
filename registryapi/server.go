package registryapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// ReadHeaderTimeout bounds how long a client may take to send its request's
	// head: without it a few thousand idle sockets hold a node (slow loris).
	ReadHeaderTimeout = 10 * time.Second
	// IdleTimeout closes kept-alive connections that ask for nothing. Longer
	// than the 90 s after which Go's and Docker's clients drop theirs, so that
	// it is the client who closes and never loses a request to the race.
	IdleTimeout = 120 * time.Second
	// MaxHeaderBytes bounds a request's head. Tokens with many scopes reach 8 KiB.
	MaxHeaderBytes = 64 << 10
	// MaxStreams bounds the requests under way on one HTTP/2 connection: what RFC
	// 9113 asks for at least. Clients have ten at most.
	MaxStreams = 100
	// MaxTokenBodyBytes bounds the form of POST /service/token.
	MaxTokenBodyBytes = 64 << 10
	// ShutdownTimeout is what requests under way get at the end: enough for a
	// layer's rest at LAN speed, short enough for a service manager's patience.
	ShutdownTimeout = 10 * time.Second
	// DefaultStall is how long a client may stand still within a request. Bodies
	// of any length are right for /v2/ uploads and downloads, so there is no time
	// limit for a whole request: every write begins this one anew, and so does
	// every read of an upload; the management APIs read their bodies under a
	// shorter one.
	DefaultStall = 2 * time.Minute
	// LeftoverTimeout is what the rest of a body that a handler did not want may
	// take to arrive, before the connection is closed instead of used again.
	LeftoverTimeout = 5 * time.Second
)

// Config says who answers what. A nil handler's paths are 404.
type Config struct {
	// V2 answers /v2 and everything below it; nil: the node is a witness.
	V2 http.Handler
	// Token answers /service/token.
	Token http.Handler
	// Harbor answers /api/v2.0/ and /api/version.
	Harbor http.Handler
	// Mesh answers /api/mesh/v1/.
	Mesh http.Handler
	// Metrics answers /metrics.
	Metrics http.Handler
	// Live says whether the process can do its work at all; nil: it can. Its
	// error's text is the body of the 503.
	Live func(context.Context) error
	// Ready says whether the node has what it needs to serve: control state and
	// first catalogue exchange. It must not ask for a leader: a node that is
	// cut off goes on serving. nil: it is.
	Ready func(context.Context) error
	// Stall is how long a client may stand still within a request; zero:
	// DefaultStall.
	Stall time.Duration
	// TLS makes the listener speak HTTPS; nil: plain HTTP.
	TLS *tls.Config
	// MaxConnections bounds the connections at a time; zero: [MaxConnections], or
	// half of the files that this process may open, if that is less.
	MaxConnections int
	// Logger takes the request log (Debug for what succeeded, Info for client
	// errors, Warn for the node's own).
	Logger *slog.Logger
}

// Server is the assembled HTTP surface.
type Server struct {
	cfg      Config
	log      *slog.Logger
	handler  http.Handler
	draining context.Context // ends when Run begins to
	drain    context.CancelFunc

	crowd *crowd

	// Config.Stall, LeftoverTimeout and ReadHeaderTimeout, but for tests.
	stall, leftover, head time.Duration
}

// New assembles the surface; it starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		return nil, errors.New("registryapi: no logger")
	}
	if cfg.Stall <= 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = maxConnections()
	}
	s := &Server{cfg: cfg, log: cfg.Logger, stall: cfg.Stall, leftover: LeftoverTimeout, head: ReadHeaderTimeout}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.crowd = newCrowd(cfg.MaxConnections)
	s.handler = s.logged(s.routes())
	return s, nil
}

// Handler gives the whole surface, for tests and for other listeners.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mount := func(pattern string, h http.Handler) {
		if h != nil {
			mux.Handle(pattern, h)
		}
	}
	if s.cfg.Token != nil {
		mux.Handle("/service/token", http.MaxBytesHandler(s.cfg.Token, MaxTokenBodyBytes))
	}
	mount("/api/v2.0/", s.endsAtDrain(s.cfg.Harbor))
	mount("/api/version", s.cfg.Harbor)
	mount("/api/mesh/v1/", s.endsAtDrain(s.cfg.Mesh))
	mount("/metrics", s.cfg.Metrics)
	mux.Handle("GET /healthz", probe(s.cfg.Live))
	mux.Handle("GET /readyz", probe(s.cfg.Ready))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if s.cfg.V2 == nil {
			_, _ = fmt.Fprint(w, "This is a witness of a Portolan mesh: it votes and holds no images. Pull and push at another site.\n")
			return
		}
		_, _ = fmt.Fprint(w, "This is a Portolan registry.\n\n"+
			"docker login HOST, then push and pull HOST/PROJECT/NAME:TAG.\n"+
			"Management: /api/v2.0/openapi.json and /api/mesh/v1/openapi.json, or the portolan command.\n")
	})

	registry := s.cfg.V2
	if registry == nil {
		return mux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Before the mux: it would answer a name with // or /../ in it by a
		// redirect, where the distribution API owes a NAME_INVALID.
		if p := r.URL.Path; p == "/v2" || strings.HasPrefix(p, "/v2/") {
			registry.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// endsAtDrain ends questions (long polls among them) when the server begins to
// stop. Edits and content go on: they have ShutdownTimeout.
func (s *Server) endsAtDrain(h http.Handler) http.Handler {
	if h == nil {
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			h.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.draining, cancel)()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

func probe(ok func(context.Context) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if ok != nil {
			if err := ok(r.Context()); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = fmt.Fprintln(w, err)
				return
			}
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
}

// Run serves on l until ctx ends, then lets requests under way finish for up to
// ShutdownTimeout, then cuts the rest. It returns when no handler runs any
// more, or the timeout is over; nil after an ordered end. Run once.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.crowd.working(s.handler),
		ConnContext:       s.crowd.enter,
		ConnState:         s.crowd.state,
		ReadHeaderTimeout: s.head,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
		// Go's own bounds hold for the rest of HTTP/2: a stream that is reset is
		// counted until its handler ends, and the control frames that wait are bounded.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: MaxStreams, WriteByteTimeout: s.stall},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Requests outlive ctx on purpose: they end by Shutdown.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	serve := srv.Serve
	if s.cfg.TLS != nil {
		srv.TLSConfig = s.cfg.TLS
		srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return withCork(s.crowd.enter(ctx, c), c) }
		// Of all ways this one sets HTTP/2 up.
		serve = func(l net.Listener) error { return srv.ServeTLS(corkedListener{l}, "", "") }
	}
	served := make(chan error, 1)
	go func() { served <- serve(l) }()

	var err error
	select {
	case err = <-served:
		s.drain()
		_ = srv.Close()
		return fmt.Errorf("registryapi: serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.drain()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), ShutdownTimeout)
	defer cancel()
	if err = srv.Shutdown(end); err != nil {
		s.log.Warn("requests cut off at the end", "after", ShutdownTimeout)
		err = srv.Close()
	}
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

package registryapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name+" "+r.URL.Path) })
}

func newServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServer_Routes(t *testing.T) {
	s := newServer(t, Config{V2: named("v2"), Token: named("token"), Harbor: named("harbor"), Mesh: named("mesh"), Metrics: named("metrics"),
		Ready: func(context.Context) error { return errors.New("the first catalogue exchange is not done") }})
	for _, c := range []struct {
		path, want string
		code       int
	}{
		{"/v2", "v2 /v2", 200},
		{"/v2/", "v2 /v2/", 200},
		{"/v2/a//b/manifests/1", "v2 /v2/a//b/manifests/1", 200}, // no redirect: v2 has an answer of its own
		{"/v2x", "404 page not found\n", 404},
		{"/service/token", "token /service/token", 200},
		{"/api/version", "harbor /api/version", 200},
		{"/api/v2.0/projects", "harbor /api/v2.0/projects", 200},
		{"/api/mesh/v1/status", "mesh /api/mesh/v1/status", 200},
		{"/metrics", "metrics /metrics", 200},
		{"/healthz", "ok\n", 200},
		{"/readyz", "the first catalogue exchange is not done\n", 503},
	} {
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, c.path, nil))
		if rec.Code != c.code || rec.Body.String() != c.want {
			t.Errorf("%s: %d %q, want %d %q", c.path, rec.Code, rec.Body, c.code, c.want)
		}
	}
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
	if !strings.Contains(rec.Body.String(), "Portolan registry") {
		t.Errorf("/ says %q", rec.Body)
	}
}

// fileWriter notes whether what a handler copied reached ReadFrom as a file,
// which is what the kernel needs for sendfile.
type fileWriter struct {
	*httptest.ResponseRecorder
	file bool
}

func (w *fileWriter) ReadFrom(r io.Reader) (int64, error) {
	lr, ok := r.(*io.LimitedReader)
	if ok {
		_, w.file = lr.R.(*os.File)
	}
	return io.Copy(w.ResponseRecorder, r)
}

func TestServer_KeepsSendfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var line bytes.Buffer
	s := newServer(t, Config{
		Logger: slog.New(slog.NewTextHandler(&line, &slog.HandlerOptions{Level: slog.LevelDebug})),
		V2: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, f)
		})})
	w := &fileWriter{ResponseRecorder: httptest.NewRecorder()}
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/x", nil))
	if !w.file {
		t.Error("the connection did not get the file itself")
	}
	for _, want := range []string{"status=200", "bytes=7", "path=/v2/x"} {
		if !strings.Contains(line.String(), want) {
			t.Errorf("log line lacks %s: %s", want, &line)
		}
	}
}

// start runs a server on a port of its own; stop ends it and gives Run's error.
func start(t *testing.T, cfg Config) (url string, stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, stop := startOn(t, l, cfg)
	return "http://" + addr, stop
}

func startOn(t *testing.T, l net.Listener, cfg Config) (addr string, stop func() error) {
	t.Helper()
	s := newServer(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(cancel)
	return l.Addr().String(), func() error { cancel(); return <-done }
}

func TestServer_EndsQuestionsAndFinishesEdits(t *testing.T) {
	asked, edit, finish := make(chan struct{}), make(chan struct{}), make(chan struct{})
	url, stop := start(t, Config{Mesh: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			close(asked)
			<-r.Context().Done()
			w.WriteHeader(http.StatusServiceUnavailable)
			close(finish) // the question has ended; only now may the edit
			return
		}
		close(edit)
		<-finish
		if r.Context().Err() != nil {
			t.Error("the edit was cut")
		}
		w.WriteHeader(http.StatusCreated)
	})})
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	codes := make(chan int, 2)
	do := func(method string) {
		req, _ := http.NewRequestWithContext(t.Context(), method, url+"/api/mesh/v1/x", nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			codes <- 0
			return
		}
		resp.Body.Close()
		codes <- resp.StatusCode
	}
	go do(http.MethodGet)
	go do(http.MethodPost)
	<-asked
	<-edit
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if a, b := <-codes, <-codes; a+b != http.StatusServiceUnavailable+http.StatusCreated {
		t.Errorf("got %d and %d", a, b)
	}
}

func TestServer_PortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, Config{})
	_ = l.Close() // what a listener that died looks like
	if err := s.Run(t.Context(), l); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Run on a dead listener: %v", err)
	}
}

// A client that stands still must not hold a goroutine and a socket for ever:
// neither one that never sends its body nor one that never reads its answer.
func TestServer_LetsGoOfClientsThatStandStill(t *testing.T) {
	returned := make(chan error, 1)
	s := newServer(t, Config{
		Token: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }), // does not read the body
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			chunk := make([]byte, 1<<20)
			for {
				if _, err := w.Write(chunk); err != nil {
					returned <- err
					return
				}
			}
		}),
	})
	s.stall, s.leftover = 200*time.Millisecond, 50*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	dial := func(request string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := dial("POST /service/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c) // until the server closes
	if err != nil || !strings.Contains(string(b), "418") {
		t.Errorf("a body that never comes: %q, %v", b, err)
	}
	dial("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case err := <-returned:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("an answer that nobody reads: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("an answer that nobody reads is written for ever")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A deadline of one request must not end the next on the same connection.
func TestServer_DeadlinesEndWithTheirRequest(t *testing.T) {
	s := newServer(t, Config{Token: named("token")})
	s.stall, s.leftover = 100*time.Millisecond, 100*time.Millisecond
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	for range 3 {
		began := time.Now()
		if _, err := io.WriteString(c, "POST /service/token HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		// Longer than both, on an idle connection: nobody speaks.
		_ = c.SetReadDeadline(began.Add(250 * time.Millisecond))
		if _, err := br.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the idle connection: %v", err)
		}
		_ = c.SetReadDeadline(time.Time{})
	}
}

func TestServer_LogsPanics(t *testing.T) {
	var out bytes.Buffer
	s := newServer(t, Config{Logger: slog.New(slog.NewTextHandler(&out, nil)),
		Token:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }),
		Metrics: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })})
	for path, logged := range map[string]bool{"/metrics": false, "/service/token": true} {
		out.Reset()
		func() {
			defer func() {
				if err, ok := recover().(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					t.Errorf("%s: panic %v", path, err)
				}
			}()
			s.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
		}()
		if got := strings.Contains(out.String(), "boom") && strings.Contains(out.String(), "server_test.go"); got != logged {
			t.Errorf("%s logged %q", path, out.String())
		}
	}
}

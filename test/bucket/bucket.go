// Package bucket runs a real S3 server for tests: versitygw on loopback, with
// files below a temporary directory, and in front of it a proxy that counts what
// is asked of it. test/tools clients installs the server.
//
// Methods of [Server] may be called from any goroutine; those that change the
// process are one goroutine's at a time.
package bucket

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portolan/portolan/test/clients"
)

const (
	accessKey = "portolan-tests"
	secretKey = "a-secret-of-the-tests"
	// patience bounds each wait, far above what is measured.
	patience = 30 * time.Second
)

// Server is a server with one bucket.
type Server struct {
	// Bucket is the bucket's name.
	Bucket string

	dir   string // of the buckets
	addr  string
	proxy *httptest.Server
	tool  string
	cmd   *exec.Cmd
	ended chan struct{} // the process is gone

	mu    sync.Mutex
	asked map[string]int
	hook  func(kind string, n int, r *http.Request) (status int)
	log   bytes.Buffer
}

// Start starts a server until the test ends, and makes a bucket. Where the server
// is not installed the test is skipped; with CI set it fails.
func Start(t testing.TB) *Server {
	t.Helper()
	tool := clients.Need(t, "versitygw")
	s := &Server{Bucket: "layers", dir: t.TempDir(), tool: tool, asked: make(map[string]int)}
	if err := s.MakeBucket(); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	_ = l.Close()
	s.proxy = httptest.NewServer(s.front())
	t.Cleanup(func() {
		s.Kill()
		s.proxy.CloseClientConnections()
		s.proxy.Close()
		if t.Failed() {
			t.Logf("the S3 server said: %s", s.log.Bytes())
		}
	})
	if err := s.Run(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Run starts the process and waits until it answers.
func (s *Server) Run() error {
	// Not with a context: it ends by Kill alone.
	s.cmd = exec.CommandContext(context.Background(), s.tool, "--port", s.addr, "--access", accessKey, "--secret", secretKey, "--quiet", "posix", s.dir)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start the S3 server: %w", err)
	}
	ended := make(chan struct{})
	s.ended = ended
	cmd := s.cmd
	go func() {
		_ = cmd.Wait() // it is killed
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", s.addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-ended:
			return fmt.Errorf("the S3 server ended: %s", s.log.Bytes())
		case <-ctx.Done():
			return fmt.Errorf("the S3 server does not listen: %w", err)
		}
	}
}

// Kill ends the process at once.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Pause stops the process where it is: connections stay, and nothing moves. It
// returns when each of its threads has stopped: one that is sending goes on until
// the signal reaches it.
func (s *Server) Pause() error {
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	late := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		stopped, err := s.stopped()
		if stopped || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("the S3 server did not stop within %s", patience)
		}
	}
}

// stopped says whether all threads are in the state T of proc(5).
func (s *Server) stopped() (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		return false, fmt.Errorf("the S3 server has no threads: %w", cmp.Or(err, os.ErrProcessDone))
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return false, nil // the thread has ended: look again
		}
		if err != nil {
			return false, err
		}
		// The name before it is in parentheses, and may have anything.
		if _, state, _ := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" ")); !bytes.HasPrefix(state, []byte("T")) {
			return false, nil
		}
	}
	return true, nil
}

// Resume lets it go on.
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// MakeBucket makes the bucket, empty.
func (s *Server) MakeBucket() error { return os.Mkdir(filepath.Join(s.dir, s.Bucket), 0o750) }

// HideBucket takes the bucket away with all that is in it; ShowBucket puts it
// back, in the place of one that was made meanwhile.
func (s *Server) HideBucket() error {
	return os.Rename(filepath.Join(s.dir, s.Bucket), s.dir+".hidden")
}

// ShowBucket undoes HideBucket.
func (s *Server) ShowBucket() error {
	if err := os.RemoveAll(filepath.Join(s.dir, s.Bucket)); err != nil {
		return err
	}
	return os.Rename(s.dir+".hidden", filepath.Join(s.dir, s.Bucket))
}

// Path is the file of an object.
func (s *Server) Path(key string) string {
	return filepath.Join(s.dir, s.Bucket, filepath.FromSlash(key))
}

// Uploads counts the multi-part uploads that have not ended.
func (s *Server) Uploads() (int, error) {
	n := 0
	root := filepath.Join(s.dir, s.Bucket, ".sgwtmp", "multipart")
	entries, err := os.ReadDir(root)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		below, err := os.ReadDir(filepath.Join(root, e.Name()))
		if err != nil {
			return 0, err
		}
		n += len(below)
	}
	return n, nil
}

// Endpoint is the URL of the proxy.
func (s *Server) Endpoint() string { return s.proxy.URL }

// Parameters are those of the s3 driver.
func (s *Server) Parameters() map[string]string {
	return map[string]string{
		"accesskey": accessKey, "secretkey": secretKey, "region": "us-east-1", "regionendpoint": s.Endpoint(),
		"forcepathstyle": "true", "secure": "false", "bucket": s.Bucket, "rootdirectory": "/store",
	}
}

// Asked gives how often what was asked for since the last call. The kinds are
// get, head, put, create, part, complete, abort, copy, delete, and list for all
// that enumerates.
func (s *Server) Asked() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = make(map[string]int)
	return asked
}

// OnRequest has fn called before each request with its kind and how many of that
// kind there were since it was set. A status other than 0 is the answer, and the
// server does not hear of the request. Nil ends it.
func (s *Server) OnRequest(fn func(kind string, n int, r *http.Request) (status int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[string]int)
	s.hook = fn
	if fn != nil {
		s.hook = func(kind string, _ int, r *http.Request) int {
			s.mu.Lock()
			counts[kind]++
			n := counts[kind]
			s.mu.Unlock()
			return fn(kind, n, r)
		}
	}
}

func kindOf(r *http.Request) string {
	q := r.URL.Query()
	object := len(r.URL.Path) > 1 && bytes.Count([]byte(r.URL.Path), []byte("/")) > 1 && r.URL.Path[len(r.URL.Path)-1] != '/'
	switch {
	case r.Method == http.MethodGet && (!object || q.Has("uploads") || q.Has("uploadId")):
		return "list"
	case r.Method == http.MethodGet:
		return "get"
	case r.Method == http.MethodHead:
		return "head"
	case r.Method == http.MethodPut && r.Header.Get("X-Amz-Copy-Source") != "":
		return "copy"
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return "part"
	case r.Method == http.MethodPut:
		return "put"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "create"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "complete"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "abort"
	default:
		return "delete"
	}
}

// front counts and passes on. The Host header stays: it is signed.
func (s *Server) front() http.Handler {
	target := &url.URL{Scheme: "http", Host: s.addr}
	pass := httputil.NewSingleHostReverseProxy(target)
	pass.Transport = &http.Transport{DisableKeepAlives: true}
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
		panic(http.ErrAbortHandler) // what a dead server looks like: a connection that ends
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := kindOf(r)
		s.mu.Lock()
		s.asked[kind]++
		hook := s.hook
		s.mu.Unlock()
		if hook != nil {
			if status := hook(kind, 0, r); status != 0 {
				w.Header().Set("Content-Length", strconv.Itoa(0))
				w.WriteHeader(status)
				return
			}
		}
		pass.ServeHTTP(w, r)
	})
}

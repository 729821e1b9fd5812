// Package cluster runs whole meshes of real portolan processes in tests: it
// builds the binary once, starts `portolan dev` or single nodes, kills them,
// and starts them again. It ends only processes that it started.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience bounds every wait of these tests. It is far above what is measured,
// so that a slow machine does not fail them; speed is measured by `make bench`.
const Patience = 60 * time.Second

var (
	buildOnce sync.Once
	binary    string
	errBuild  error
)

// Binary builds cmd/portolan once per test process and gives its path.
func Binary(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "portolan-bin")
		if err != nil {
			errBuild = err
			return
		}
		binary = filepath.Join(dir, "portolan")
		out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/portolan/portolan/cmd/portolan").CombinedOutput()
		if err != nil {
			errBuild = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if errBuild != nil {
		t.Fatal(errBuild)
	}
	return binary
}

// RemoveBinary deletes what Binary built; call it at the end of TestMain.
func RemoveBinary() {
	if binary != "" {
		_ = os.RemoveAll(filepath.Dir(binary))
	}
}

// Eventually waits until check gives nil, and fails the test with its last
// error when that takes longer than within.
func Eventually(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, t.Context().Err())
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// Site is one running (or killed) node.
type Site struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	Data string `json:"data"`
	PID  int    `json:"pid"`
}

// Host is host:port of the registry, as image names have it.
func (s Site) Host() string { return strings.TrimPrefix(s.URL, "http://") }

// Mesh is a set of running sites.
type Mesh struct {
	Sites    []Site `json:"sites"`
	Username string `json:"username"`
	Password string `json:"password"`

	BasePort int      `json:"-"`
	Dev      *Process `json:"-"`
}

// Process is a portolan process that the test started.
type Process struct {
	Cmd    *exec.Cmd
	exited chan struct{}
	err    error
	out    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Start runs the binary with arguments until the test ends or Stop is called.
func Start(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	// Not t.Context: it ends before Cleanup, which stops the process in order.
	return StartCommand(t, env, exec.CommandContext(context.Background(), Binary(t), args...))
}

// StartCommand is Start for a command of the caller's, say one that runs the
// binary in a network of its own. Its context must last until Cleanup.
func StartCommand(t testing.TB, env []string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, exited: make(chan struct{}), out: &lockedBuffer{}}
	p.Cmd.Env = append(clean(os.Environ()), env...)
	p.Cmd.Stdout, p.Cmd.Stderr = p.out, p.out
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.Cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("portolan %s said:\n%s", strings.Join(cmd.Args[1:], " "), last(p.out.String(), 24<<10))
		}
	})
	return p
}

func last(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// clean drops the settings of whoever runs the tests.
func clean(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "PORTOLAN_") {
			out = append(out, e)
		}
	}
	return out
}

// Output is what the process printed so far.
func (p *Process) Output() string { return p.out.String() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Err is how it ended; only after Exited is closed.
func (p *Process) Err() error { return p.err }

// Stop asks the process to end and waits for it.
func (p *Process) Stop(t testing.TB) {
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		t.Errorf("portolan %s did not stop within 30 s of SIGTERM", strings.Join(p.Cmd.Args[1:], " "))
		_ = p.Cmd.Process.Signal(syscall.SIGQUIT) // its stacks go to the log
		select {
		case <-p.exited:
		case <-time.After(5 * time.Second):
			_ = p.Cmd.Process.Kill()
			<-p.exited
		}
	}
}

// Kill ends the process as a power cut would.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.exited
}

// BasePort finds a port from which n ports are free on loopback, TCP and UDP.
func BasePort(t testing.TB, n int) int {
	t.Helper()
	for range 200 {
		base := 20000 + rand.IntN(10000)
		if free(base, n) {
			return base
		}
	}
	t.Fatal("no free range of ports")
	return 0
}

func free(base, n int) bool {
	for p := base; p < base+n; p++ {
		addr := net.JoinHostPort("", strconv.Itoa(p))
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp", addr)
		if err != nil {
			return false
		}
		l.Close()
		u, err := lc.ListenPacket(context.Background(), "udp", addr)
		if err != nil {
			return false
		}
		u.Close()
	}
	return true
}

// StartDev runs `portolan dev` with n sites and waits until all are ready.
func StartDev(t testing.TB, n int) *Mesh {
	t.Helper()
	return DevIn(t, t.TempDir(), n)
}

// DevIn is StartDev on a directory of the caller's, which may hold a mesh.
func DevIn(t testing.TB, dir string, n int) *Mesh {
	t.Helper()
	base := BasePort(t, 10*(n+3))
	return DevAt(t, dir, n, base)
}

// DevAt is DevIn at a base port: a mesh keeps its ports over restarts.
func DevAt(t testing.TB, dir string, n, base int) *Mesh {
	t.Helper()
	p := Start(t, nil, "dev", "--sites", strconv.Itoa(n), "--data", dir, "--base-port", strconv.Itoa(base))
	return AwaitDev(t, p, dir, n, base)
}

// AwaitDev waits until a `portolan dev` that the caller started is ready.
func AwaitDev(t testing.TB, p *Process, dir string, n, base int) *Mesh {
	t.Helper()
	m := &Mesh{Dev: p, BasePort: base}
	Eventually(t, 2*Patience, "portolan dev writes dev.json", func() error {
		select {
		case <-p.exited:
			t.Fatalf("portolan dev ended: %v\n%s", p.err, p.Output())
		default:
		}
		b, err := os.ReadFile(filepath.Join(dir, "dev.json"))
		if err != nil {
			return err
		}
		return json.Unmarshal(b, m)
	})
	if len(m.Sites) != n {
		t.Fatalf("dev.json names %d sites, want %d", len(m.Sites), n)
	}
	return m
}

// KillSite ends site i's process as a power cut would.
func (m *Mesh) KillSite(t testing.TB, i int) {
	t.Helper()
	pid := m.Sites[i].PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %s: %v", m.Sites[i].Name, err)
	}
	Eventually(t, Patience, "the killed process is gone", func() error {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return nil
		}
		return fmt.Errorf("pid %d is still there", pid)
	})
}

// RestartSite starts site i again from its data directory alone.
func (m *Mesh) RestartSite(t testing.TB, i int) *Process {
	t.Helper()
	p := Start(t, nil, "serve", "--data", m.Sites[i].Data)
	m.Sites[i].PID = p.Cmd.Process.Pid
	m.WaitReady(t, i)
	return p
}

// WaitReady waits until site i answers /readyz with 200.
func (m *Mesh) WaitReady(t testing.TB, i int) {
	t.Helper()
	Eventually(t, Patience, m.Sites[i].Name+" is ready", func() error {
		status, body, err := m.Get(t, i, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
}

// WaitVoters waits until n sites vote, as site i says.
func (m *Mesh) WaitVoters(t testing.TB, i, n int) {
	t.Helper()
	Eventually(t, Patience, fmt.Sprintf("%d sites vote", n), func() error {
		var s struct{ Voters []string }
		if err := json.Unmarshal([]byte(m.Must(t, i, "status", "--json")), &s); err != nil {
			return err
		}
		if len(s.Voters) != n {
			return fmt.Errorf("%v vote", s.Voters)
		}
		return nil
	})
}

// Get asks site i as the administrator.
func (m *Mesh) Get(t testing.TB, i int, path string) (int, []byte, error) {
	t.Helper()
	return m.Do(t, i, http.MethodGet, path, nil, nil)
}

// Do sends a request to site i as the administrator.
func (m *Mesh) Do(t testing.TB, i int, method, path string, header http.Header, body io.Reader) (int, []byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, m.Sites[i].URL+path, body)
	if err != nil {
		return 0, nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.SetBasicAuth(m.Username, m.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// Result is what a CLI command printed and how it ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// CLI runs `portolan args…` against site i as the administrator.
func (m *Mesh) CLI(t testing.TB, i int, args ...string) Result {
	t.Helper()
	return RunCLI(t, []string{"PORTOLAN_USERNAME=" + m.Username, "PORTOLAN_PASSWORD=" + m.Password},
		append(args, "--server", m.Sites[i].URL)...)
}

// Must is CLI for commands that have to succeed; it gives their stdout.
func (m *Mesh) Must(t testing.TB, i int, args ...string) string {
	t.Helper()
	r := m.CLI(t, i, args...)
	if r.Code != 0 {
		t.Fatalf("portolan %s at %s: exit %d\n%s%s", strings.Join(args, " "), m.Sites[i].Name, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// RunCLI runs the binary to its end.
func RunCLI(t testing.TB, env []string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	return RunCommand(t, env, exec.CommandContext(ctx, Binary(t), args...))
}

// RunCommand is RunCLI for a command of the caller's, see StartCommand.
func RunCommand(t testing.TB, env []string, cmd *exec.Cmd) Result {
	t.Helper()
	// No saved login of whoever runs the tests.
	cmd.Env = append(clean(os.Environ()), append([]string{"HOME=" + t.TempDir(), "XDG_CONFIG_HOME="}, env...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		t.Fatalf("portolan %s: %v", strings.Join(cmd.Args[1:], " "), err)
	}
	return r
}

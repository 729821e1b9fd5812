package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/test/ports"
)

const (
	testPassword = "a-password-for-tests"
	// patience bounds every wait, far above what is measured.
	patience = 60 * time.Second
)

// TestMain: nothing is left behind, once memberlist's probes have ended by
// themselves: within a probe interval, longer than goleak waits.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		end := time.Now().Add(10 * time.Second)
		err := goleak.Find()
		for err != nil && time.Now().Before(end) {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// machine is a data directory, its ports, and the node that runs on it.
type machine struct {
	t     *testing.T
	dir   string
	ports [4]int       // registry, gossip, control, data
	ahead atomic.Int64 // of the true time, in nanoseconds
	log   buffer

	http *http.Client
	stop func() error // ends the node; nil while it does not run
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, dir: filepath.Join(t.TempDir(), "data"), http: &http.Client{Transport: &http.Transport{}}}
	m.freePorts()
	t.Cleanup(func() {
		if m.stop != nil {
			if err := m.stop(); err != nil {
				t.Error(err)
			}
		}
		m.http.CloseIdleConnections()
	})
	return m
}

// freePorts takes four ports that are free for TCP and UDP.
func (m *machine) freePorts() {
	m.t.Helper()
	for i := range m.ports {
		m.ports[i] = ports.Free(m.t)
	}
}

func (m *machine) url() string { return "http://127.0.0.1:" + strconv.Itoa(m.ports[0]) }

// settings are what the command line would give.
func (m *machine) settings(args ...string) (config.Config, error) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.AddFlags(fs)
	p := m.ports
	all := append([]string{"--data", m.dir, "--advertise", "127.0.0.1", "--bind", "127.0.0.1", "--http", "127.0.0.1:" + strconv.Itoa(p[0]),
		"--gossip-port", strconv.Itoa(p[1]), "--control-port", strconv.Itoa(p[2]), "--data-port", strconv.Itoa(p[3])}, args...)
	if err := fs.Parse(all); err != nil {
		return config.Config{}, err
	}
	cfg, _, err := config.Load(fs, nil)
	return cfg, err
}

// now is the machine's clock.
func (m *machine) now() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) }

// run runs the node until ctx ends.
func (m *machine) run(ctx context.Context, args ...string) error {
	s, err := m.settings(args...)
	if err != nil {
		return err
	}
	return Run(ctx, Config{Settings: s, Logger: slog.New(slog.NewTextHandler(&m.log, nil)), Version: "test",
		AdminPassword: testPassword, Notice: io.Discard, Now: m.now})
}

// start runs the node and waits until it is ready.
func (m *machine) start(args ...string) {
	m.t.Helper()
	m.launch(args...)
	m.await("ready", func() error { _, err := m.get("/readyz"); return err })
}

// launch runs the node and does not wait.
func (m *machine) launch(args ...string) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = m.run(ctx, args...)
		if ctx.Err() == nil {
			m.t.Errorf("the node ended by itself: %v\n%s", err, m.log.String())
		}
	}()
	m.stop = func() error {
		m.stop = nil
		cancel()
		m.http.CloseIdleConnections()
		select {
		case <-ended:
			return err
		case <-time.After(patience):
			return fmt.Errorf("the node does not stop:\n%s", m.log.String())
		}
	}
}

func (m *machine) mustStop() {
	m.t.Helper()
	if err := m.stop(); err != nil {
		m.t.Fatal(err)
	}
}

// await waits until check gives nil.
func (m *machine) await(what string, check func() error) {
	m.t.Helper()
	end := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s: not within %s: %v\n%s", what, patience, err, m.log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *machine) get(path string) ([]byte, error) { return m.do(http.MethodGet, path, nil) }

// do sends a request as the administrator; what is no success is an error.
func (m *machine) do(method, path string, body any) ([]byte, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(b)
	}
	return m.send(method, path, "application/json", in)
}

func (m *machine) send(method, path, kind string, in io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.url()+path, in)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth("admin", testPassword)
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Accept", ociManifest)
	resp, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, out)
	}
	return out, err
}

func (m *machine) status() (s mesh.Status, err error) {
	b, err := m.get(mesh.Prefix + "/status")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

// token invites a site.
func (m *machine) token(site string) string {
	m.t.Helper()
	var t mesh.Token
	m.await("a token for "+site, func() error {
		b, err := m.do(http.MethodPost, mesh.Prefix+"/tokens", mesh.TokenRequest{Site: site, ExpiresIn: "1h"})
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &t)
	})
	return t.Token
}

// tokens lists the mesh's tokens.
func (m *machine) tokens() (list []mesh.Token) {
	m.t.Helper()
	m.await("tokens", func() error {
		b, err := m.get(mesh.Prefix + "/tokens")
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &list)
	})
	return list
}

// entries lists a directory, but for the lock, which every process leaves.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if e.Name() != "lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func (m *machine) tryJoin(token string, args ...string) error {
	s, err := m.settings(args...)
	if err != nil {
		return err
	}
	_, err = Join(m.t.Context(), JoinConfig{Settings: s, Token: token, Version: "test", Say: func(string) {}, Now: m.now})
	return err
}

func (m *machine) join(token string, args ...string) {
	m.t.Helper()
	if err := m.tryJoin(token, args...); err != nil {
		m.t.Fatal(err)
	}
}

// made reports whether the directory belongs to a mesh.
func (m *machine) made() bool {
	m.t.Helper()
	_, ok, err := config.ReadFormat(m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	return ok
}

// createProject makes an edit at this node.
func (m *machine) createProject(name string) error {
	_, err := m.do(http.MethodPost, "/api/v2.0/projects", map[string]any{"project_name": name, "metadata": map[string]string{"public": "false"}})
	return err
}

func (m *machine) hasProject(name string) error {
	_, err := m.get("/api/v2.0/projects/" + name)
	return err
}

// push makes a small artifact with one blob and gives the blob's digest.
func (m *machine) push(repo, tag string) string {
	m.t.Helper()
	blob := []byte("content of " + repo + ":" + tag + strings.Repeat(".", 64<<10))
	d := digest.FromBytes(blob)
	empty := digest.FromBytes([]byte("{}"))
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ociManifest, "application/vnd.oci.empty.v1+json", empty, "application/vnd.oci.image.layer.v1.tar", d, len(blob))
	for _, r := range []struct {
		method, path, kind string
		body               []byte
	}{
		{http.MethodPost, "/v2/" + repo + "/blobs/uploads/?digest=" + d.String(), "application/octet-stream", blob},
		{http.MethodPost, "/v2/" + repo + "/blobs/uploads/?digest=" + empty.String(), "application/octet-stream", []byte("{}")},
		{http.MethodPut, "/v2/" + repo + "/manifests/" + tag, ociManifest, []byte(manifest)},
	} {
		if _, err := m.send(r.method, r.path, r.kind, bytes.NewReader(r.body)); err != nil {
			m.t.Fatal(err)
		}
	}
	return d.String()
}

const ociManifest = "application/vnd.oci.image.manifest.v1+json"

// descriptors counts this process's open files; -1 where that is unknown.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries)
}

// nothingLeft waits until the process is as it was.
func (m *machine) nothingLeft(before int, known goleak.Option) {
	m.t.Helper()
	m.await("no goroutine is left", func() error { return goleak.Find(known) })
	m.await("no file is left open", func() error {
		if now := descriptors(m.t); now > before {
			var names []string
			entries, _ := os.ReadDir("/proc/self/fd")
			for _, e := range entries {
				name, _ := os.Readlink("/proc/self/fd/" + e.Name())
				names = append(names, name)
			}
			return fmt.Errorf("%d files are open, %d were: %s", now, before, strings.Join(names, " "))
		}
		return nil
	})
}

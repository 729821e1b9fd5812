// Package clients runs the real clients of a registry in tests: a docker
// engine of the test's own, podman, skopeo, crane. A client that is not
// installed skips the test, or fails it with CI set: see `make tools`.
package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandLimit bounds one client command; a registry that hangs is a failure.
const commandLimit = 3 * time.Minute

// Need finds a client's program.
func Need(t testing.TB, name string) string {
	t.Helper()
	path := os.Getenv("PATH") + ":/usr/sbin:/sbin"
	if c := os.Getenv("CACHE"); c != "" {
		path += ":" + filepath.Join(c, "tools")
	} else if c, err := os.UserCacheDir(); err == nil {
		path += ":" + filepath.Join(c, "portolan", "tools")
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed: run `make tools` as root", name)
	}
	t.Skipf("%s is not installed: run `make tools` as root", name)
	return ""
}

// Run runs a program and returns what it printed on stdout; a failure ends the
// test with all it printed.
func Run(t testing.TB, env []string, program string, args ...string) string {
	t.Helper()
	out, err := Try(t, env, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Run for commands that may fail.
func Try(t testing.TB, env []string, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// Engine is a docker engine that this test started, with nothing in it.
type Engine struct {
	docker string
	env    []string
}

// Docker starts an engine without networking of its own; it treats registries
// on 127.0.0.0/8 as insecure, so plain HTTP works there.
func Docker(t testing.TB) *Engine {
	t.Helper()
	docker, dockerd := Need(t, "docker"), Need(t, "dockerd")
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("a docker engine needs root")
		}
		t.Skip("a docker engine needs root")
	}
	// Unix socket paths are short: not below t.TempDir.
	dir, err := os.MkdirTemp("", "pd")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	// Not t.Context: it ends before Cleanup, which stops the engine in order.
	cmd := exec.CommandContext(context.Background(), dockerd,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-H", "unix://"+filepath.Join(dir, "sock"), "-p", filepath.Join(dir, "pid"),
		"--iptables=false", "--ip6tables=false", "--bridge=none")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	e := &Engine{docker: docker, env: []string{
		"DOCKER_HOST=unix://" + filepath.Join(dir, "sock"),
		"DOCKER_CONFIG=" + filepath.Join(dir, "config"),
	}}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case _ = <-exited:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			_ = <-exited
		}
		_ = unix.Unmount(filepath.Join(dir, "exec", "netns", "default"), unix.MNT_DETACH)
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("the docker engine said at the end:\n%s", tail(b, 4096))
		}
		log.Close()
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Logf("left behind: %v", err)
		}
	})
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := Try(t, e.env, docker, "version"); err == nil {
			return e
		}
		select {
		case err := <-exited:
			exited <- err
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("the docker engine ended: %v\n%s", err, tail(b, 4096))
		case <-deadline:
			t.Fatal("the docker engine did not answer within a minute")
		case <-tick.C:
		}
	}
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// Env makes any docker command speak to this engine.
func (e *Engine) Env() []string { return append([]string(nil), e.env...) }

// Run runs `docker args…` against the engine.
func (e *Engine) Run(t testing.TB, args ...string) string {
	t.Helper()
	return Run(t, e.env, e.docker, args...)
}

// Try is Run for commands that may fail.
func (e *Engine) Try(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return Try(t, e.env, e.docker, args...)
}

// Login logs the engine's client in; the credentials stay in the test's directory.
func (e *Engine) Login(t testing.TB, registry, user, password string) {
	t.Helper()
	e.Run(t, "login", "-u", user, "-p", password, registry)
}

// Load brings the image of an OCI layout into the engine under a name.
func (e *Engine) Load(t testing.TB, layout, name string) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	Run(t, nil, Need(t, "skopeo"), "copy", "oci:"+layout, "docker-archive:"+archive+":"+name)
	e.Run(t, "load", "-i", archive)
}

// Podman gives a podman whose images live in a directory of the test's own.
func Podman(t testing.TB) func(args ...string) string {
	t.Helper()
	podman := Need(t, "podman")
	dir, err := os.MkdirTemp("", "pp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	auth := filepath.Join(dir, "auth.json") // nobody's logins but the test's
	if err := os.WriteFile(auth, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"REGISTRY_AUTH_FILE=" + auth}
	return func(args ...string) string {
		t.Helper()
		return Run(t, env, podman, append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"}, args...)...)
	}
}

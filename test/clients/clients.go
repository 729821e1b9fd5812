// Package clients runs the real clients of a registry in tests: a docker engine
// and a containerd of the test's own, podman, and whatever else `make tools`
// installs. A client that is not installed skips the test, or fails it with CI
// set.
package clients

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
		t.Fatalf("%s is not installed: run `make tools`, as root for packages", name)
	}
	t.Skipf("%s is not installed: run `make tools`, as root for packages", name)
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

// Home gives clients a home of the test's own: nobody's logins, keys, caches or
// settings are read or written.
func Home(t testing.TB) []string {
	t.Helper()
	dir := t.TempDir()
	env := []string{"HOME=" + dir, "DOCKER_CONFIG=" + filepath.Join(dir, "docker"),
		"REGISTRY_AUTH_FILE=" + filepath.Join(dir, "docker", "config.json")}
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"} {
		env = append(env, name+"="+filepath.Join(dir, strings.ToLower(name)))
	}
	return env
}

// Offline makes clients fail that would ask anything but this machine.
func Offline() []string {
	const nobody = "http://127.0.0.1:9" // the discard port: nothing listens
	return []string{"HTTP_PROXY=" + nobody, "HTTPS_PROXY=" + nobody, "http_proxy=" + nobody, "https_proxy=" + nobody,
		"NO_PROXY=127.0.0.1,localhost", "no_proxy=127.0.0.1,localhost"}
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
	return docker(t, func(_, dockerd string, args []string) *exec.Cmd {
		// Not t.Context: it ends before Cleanup, which stops the daemon in order.
		return exec.CommandContext(context.Background(), dockerd, args...)
	})
}

// DockerAt is Docker in the network namespace at a path. It takes certificates of
// authorities from certs, a directory laid out as /etc/docker/certs.d, and none of
// the machine's.
func DockerAt(t testing.TB, netns, certs string) *Engine {
	t.Helper()
	nsenter, unshare := Need(t, "nsenter"), Need(t, "unshare")
	return docker(t, func(dir, dockerd string, args []string) *exec.Cmd {
		etc := filepath.Join(dir, "etc")
		if err := os.MkdirAll(filepath.Join(etc, "docker", "certs.d"), 0o755); err != nil {
			t.Fatal(err)
		}
		// An engine looks below /etc alone. In a mount namespace of its own that has
		// a directory more, and the machine's is not touched.
		const script = `mount -t overlay -o "ro,lowerdir=$1:/etc" overlay /etc && mount --bind "$2" /etc/docker/certs.d && shift 2 && exec "$@"`
		return exec.CommandContext(context.Background(), nsenter, append([]string{"--net=" + netns,
			unshare, "--mount", "--propagation", "private", "sh", "-c", script, "sh", etc, certs, dockerd}, args...)...)
	})
}

func docker(t testing.TB, command func(dir, dockerd string, args []string) *exec.Cmd) *Engine {
	t.Helper()
	docker, dockerd := Need(t, "docker"), Need(t, "dockerd")
	needRoot(t, "a docker engine")
	dir := shortDir(t, "pd")
	e := &Engine{docker: docker, env: []string{
		"DOCKER_HOST=unix://" + filepath.Join(dir, "sock"),
		"DOCKER_CONFIG=" + filepath.Join(dir, "config"),
	}}
	daemon(t, dir, func() error {
		_, err := Try(t, e.env, docker, "version")
		return err
	}, []string{"exec/netns/default"}, command(dir, dockerd, []string{
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-H", "unix://" + filepath.Join(dir, "sock"), "-p", filepath.Join(dir, "pid"),
		"--iptables=false", "--ip6tables=false", "--bridge=none"}))
	return e
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

// Load brings the image of an OCI layout into the engine under a name; skopeo's
// options choose one of several platforms.
func (e *Engine) Load(t testing.TB, layout, name string, options ...string) {
	t.Helper()
	e.Run(t, "load", "-i", Archive(t, layout, name, options...))
}

// Archive makes what `docker save` would of the image of an OCI layout.
func Archive(t testing.TB, layout, name string, options ...string) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	Run(t, nil, Need(t, "skopeo"), append(options, "copy", "oci:"+layout, "docker-archive:"+archive+":"+name)...)
	return archive
}

// Podman gives a podman whose images live in a directory of the test's own.
func Podman(t testing.TB) func(args ...string) string {
	t.Helper()
	podman := Need(t, "podman")
	dir := shortDir(t, "pp")
	auth := filepath.Join(dir, "auth.json") // nobody's logins but the test's
	if err := os.WriteFile(auth, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(Home(t), "REGISTRY_AUTH_FILE="+auth)
	return func(args ...string) string {
		t.Helper()
		return Run(t, env, podman, append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"}, args...)...)
	}
}

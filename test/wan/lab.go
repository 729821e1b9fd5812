package wan

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// command is the router's process.
	command = "github.com/portolan/portolan/test/wan/wanlab"

	// startLimit and stopLimit bound what takes 20 ms per site on a quiet machine.
	startLimit = 2 * time.Minute
	stopLimit  = time.Minute
)

// Lab is a running lab of a test. Its methods fail the test when they can't do
// what they are asked for, so call them from the test's goroutine; Control is
// for others.
type Lab struct {
	Control *Control

	t      testing.TB
	name   string
	topo   Topo
	router *exec.Cmd
	stdin  io.Closer
	stderr bytes.Buffer // of the router; to be read when it has ended
	killed bool
	close  sync.Once
}

var labs atomic.Int64

// Need skips a test where no lab can be: without root, and without CI set also
// where a tool or device is missing.
func Need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a WAN needs root, for network namespaces: run the test as root")
	}
	_, err := ipPath()
	if err == nil {
		_, err = os.Stat("/dev/net/tun")
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("a WAN can't be made here: %v: run `make tools`", err)
	default:
		t.Skipf("a WAN can't be made here: %v: run `make tools`", err)
	}
}

// Start brings a lab up, in a process of its own, and takes it down when the
// test ends. Before, it removes what crashed labs left on the machine. Several
// labs may be up at once: each has the same addresses, in namespaces of its own.
func Start(t testing.TB, topo Topo) *Lab {
	t.Helper()
	Need(t)
	if err := topo.check(); err != nil {
		t.Fatal(err)
	}
	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(topo)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "topo.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	l := &Lab{t: t, topo: topo, name: fmt.Sprintf("t%dn%d", os.Getpid(), labs.Add(1))}
	l.Control = NewControl(l.name)
	// Not t.Context: it ends before Cleanup, which stops the router in order.
	l.router = exec.CommandContext(context.Background(), binary(t), "up", "-f", file, "--exit-with-stdin")
	l.router.Env = append(os.Environ(), "WANLAB="+l.name)
	l.router.Stderr = &l.stderr
	// A group of its own, without the interrupts of a terminal: it ends when this
	// process does, and cleans up then.
	l.router.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := l.router.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := l.router.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.stdin = stdin
	if err := l.router.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	timer := time.AfterFunc(startLimit, func() { _ = l.router.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if !timer.Stop() || err != nil || line != "up\n" {
		l.Close() // which says what the router said
		t.Fatalf("the lab does not come up: it said %q, %v", line, err)
	}
	return l
}

// Close takes the lab down; the end of the test does it too. End what runs in
// its sites first. A router that has failed before fails the test.
func (l *Lab) Close() {
	l.close.Do(func() {
		l.t.Helper()
		l.stdin.Close()
		timer := time.AfterFunc(stopLimit, func() { _ = l.router.Process.Kill() })
		defer timer.Stop()
		err := l.router.Wait()
		if l.stderr.Len() > 0 {
			l.t.Logf("wanlab said:\n%s", l.stderr.String())
		}
		if err == nil {
			return
		}
		if !l.killed {
			l.t.Errorf("wanlab ended with %v", err)
		}
		// The router is dead, so only a sweep, which removes all of it, has the name.
		if _, err := Down(l.name); err != nil && !errors.Is(err, errInUse) {
			l.t.Errorf("remove what lab %s left: %v", l.name, err)
		}
	})
}

// Name is the lab's name, for Control and the command's $WANLAB.
func (l *Lab) Name() string { return l.name }

// Addr is the IP address of a site.
func (l *Lab) Addr(site string) string {
	l.t.Helper()
	for i, s := range l.topo.Sites {
		if s.Name == site {
			return siteAddr(i + 1)
		}
	}
	l.t.Fatalf("the lab has no site %q", site)
	return ""
}

// Command prepares a process in a site, see the function Command.
func (l *Lab) Command(ctx context.Context, site, name string, args ...string) *exec.Cmd {
	l.t.Helper()
	cmd, err := Command(ctx, l.name, site, name, args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return cmd
}

// Namespace is the path of a site's network namespace, for programs that enter one
// by themselves.
func (l *Lab) Namespace(site string) string {
	return filepath.Join(netnsDir, nsName(l.name, site))
}

// Dialer dials from a site, for http.Transport and the like. It may be used from
// any goroutine.
func (l *Lab) Dialer(site string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return Dial(ctx, l.name, site, network, address)
	}
}

// Listen listens at a free TCP port of a site, until the test ends.
func (l *Lab) Listen(site string) net.Listener {
	l.t.Helper()
	listener, err := Listen(l.t.Context(), l.name, site, "tcp", net.JoinHostPort(l.Addr(site), "0"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close() })
	return listener
}

// ListenPacket opens a free UDP port of a site, until the test ends.
func (l *Lab) ListenPacket(site string) net.PacketConn {
	l.t.Helper()
	conn, err := ListenPacket(l.t.Context(), l.name, site, "udp", net.JoinHostPort(l.Addr(site), "0"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// Sysctl sets a kernel parameter of a site, see the function Sysctl.
func (l *Lab) Sysctl(site, name, value string) {
	l.t.Helper()
	l.must(Sysctl(l.name, site, name, value))
}

// Link changes the link between two sites, in both directions.
func (l *Lab) Link(a, b string, c Change) {
	l.t.Helper()
	l.must(l.Control.Link(l.t.Context(), Link{A: a, B: b, Change: c}))
}

// LinkOneWay changes the direction from one site to another.
func (l *Lab) LinkOneWay(from, to string, c Change) {
	l.t.Helper()
	l.must(l.Control.Link(l.t.Context(), Link{A: from, B: to, OneWay: true, Change: c}))
}

// Isolate cuts a site off from all others.
func (l *Lab) Isolate(site string) {
	l.t.Helper()
	l.must(l.Control.Isolate(l.t.Context(), site))
}

// Heal undoes Isolate and takes up the links of the named sites, of all sites if
// none is named.
func (l *Lab) Heal(sites ...string) {
	l.t.Helper()
	if len(sites) == 0 {
		sites = []string{""}
	}
	for _, s := range sites {
		l.must(l.Control.Heal(l.t.Context(), s))
	}
}

// Stats returns the counters since the start or the last reset, and zeroes them
// if reset is set.
func (l *Lab) Stats(reset bool) Stats {
	l.t.Helper()
	st, err := l.Control.Stats(l.t.Context(), reset)
	l.must(err)
	return st
}

func (l *Lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

var build = sync.OnceValues(func() (*os.File, error) {
	dir, err := os.MkdirTemp("", "wanlab")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "wanlab")
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", path, command).CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("go build %s: %w", command, err), errors.New(string(out)))
	}
	return os.Open(path)
})

// binary builds the command once per test process and gives a path to it. The
// file has no name, only this process's descriptor, so that nothing is left
// however the process ends.
func binary(t testing.TB) string {
	t.Helper()
	f, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

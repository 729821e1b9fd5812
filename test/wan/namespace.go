package wan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tunName = "wan0"
	tunQLen = 5000 // packets the kernel keeps for the router before it drops some (HostDrops)

	netnsDir = "/run/netns" // where ip keeps the names of namespaces

	// ipLimit bounds one run of ip, which takes milliseconds.
	ipLimit = 30 * time.Second
)

// nsName is the namespace of a site; names of labs have no dash, see labName.
func nsName(lab, site string) string { return nsPrefix(lab) + site }
func nsPrefix(lab string) string     { return "wan-" + lab + "-" }

// namespace is a network namespace with a TUN device, which the router owns.
type namespace struct {
	tun int      // file descriptor
	dev *os.File // /proc/net/dev as the namespace sees it
}

// ipPath finds the ip command, also for users without sbin in their path.
func ipPath() (string, error) {
	for _, name := range []string{"ip", "/usr/sbin/ip", "/sbin/ip"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no ip command: install iproute2")
}

// ip runs the ip command with stdin and returns its output.
func ip(stdin string, args ...string) (string, error) {
	path, err := ipPath()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), ipLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// newNamespace makes a namespace with a TUN device that has an address, or
// nothing if it fails.
func newNamespace(name, addr string, mtu int) (*namespace, error) {
	if _, err := ip("", "netns", "add", name); err != nil {
		return nil, err
	}
	n := &namespace{tun: -1}
	err := inside(name, n.open)
	if err == nil {
		_, err = ip(strings.Join([]string{
			"link set lo up",
			fmt.Sprintf("link set %s addrgenmode none", tunName), // no IPv6
			fmt.Sprintf("link set %s mtu %d txqueuelen %d up", tunName, mtu, tunQLen),
			fmt.Sprintf("addr add %s/16 dev %s", addr, tunName), // with the route to all sites
		}, "\n"), "-n", name, "-batch", "-")
	}
	if err != nil {
		n.close()
		_, del := ip("", "netns", "del", name)
		return nil, errors.Join(err, del)
	}
	return n, nil
}

// open creates the TUN device. A device belongs to the network namespace of the
// thread that opens /dev/net/tun, and so does what /proc/net shows.
func (n *namespace) open() (err error) {
	if n.tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(tunName)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(n.tun, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make %s: %w", tunName, err)
	}
	n.dev, err = os.Open("/proc/thread-self/net/dev")
	return err
}

// close removes the TUN device.
func (n *namespace) close() {
	if n.tun >= 0 {
		_ = unix.Close(n.tun)
	}
	if n.dev != nil {
		n.dev.Close()
	}
}

// drops is how many packets the kernel has dropped because the router did not
// read the TUN in time.
func (n *namespace) drops() (uint64, error) {
	b := make([]byte, 4096) // two devices, a line each
	size, err := n.dev.ReadAt(b, 0)
	if size == 0 {
		return 0, err
	}
	return sendDrops(b[:size])
}

// sendDrops reads /proc/net/dev: after the name eight numbers of what was
// received, then bytes, packets, errors and drops of what was sent.
func sendDrops(dev []byte) (uint64, error) {
	for line := range bytes.Lines(dev) {
		name, numbers, _ := bytes.Cut(line, []byte(":"))
		if string(bytes.TrimSpace(name)) != tunName {
			continue
		}
		fields := bytes.Fields(numbers)
		const drops = 8 + 3
		if len(fields) <= drops {
			return 0, fmt.Errorf("/proc/net/dev has %q", line)
		}
		return strconv.ParseUint(string(fields[drops]), 10, 64)
	}
	return 0, fmt.Errorf("/proc/net/dev has no %s", tunName)
}

// inside runs f on a thread in a namespace: sockets that f makes stay there. f
// must not start goroutines that make some, and must return.
func inside(name string, f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := enter(filepath.Join(netnsDir, name))
		if err != nil {
			runtime.UnlockOSThread()
			errc <- err
			return
		}
		defer home.Close()
		err = f()
		// The thread is brought back rather than ended: children that were started
		// from it may have asked to be killed when it ends (Pdeathsig).
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			errc <- errors.Join(err, fmt.Errorf("setns back: %w", back))
			return // still locked: the thread ends with the goroutine
		}
		runtime.UnlockOSThread()
		errc <- err
	}()
	return <-errc
}

// enter brings this thread into a namespace and returns the one that it was in.
func enter(path string) (home *os.File, err error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		home.Close()
		return nil, fmt.Errorf("setns %s: %w", path, err)
	}
	return home, nil
}

// removeNamespaces deletes all namespaces of a lab. It returns a note for each
// that still has processes: they are not this package's to end, and keep the
// namespace, without a name, until they do.
func removeNamespaces(lab string) (notes []string, err error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), nsPrefix(lab)) {
			continue
		}
		if pids, e2 := ip("", "netns", "pids", e.Name()); e2 == nil && pids != "" {
			notes = append(notes, fmt.Sprintf("%s: processes are left behind: %s", e.Name(), strings.Join(strings.Fields(pids), " ")))
		}
		_, del := ip("", "netns", "del", e.Name())
		err = errors.Join(err, del)
	}
	return notes, err
}

package wan

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Command prepares a process in a site of a lab: it has no network but that of
// the site, where it is reached by the site's address and 127.0.0.1. Its pid,
// signals and exit status are those of name itself. It is killed when the thread
// that started it ends, so at the latest with this process.
func Command(ctx context.Context, lab, site, name string, args ...string) (*exec.Cmd, error) {
	ip, err := ipPath()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(netnsDir, nsName(lab, site))); err != nil {
		return nil, fmt.Errorf("lab %s has no site %q", lab, site)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	// ip enters the namespace and executes the program in its own place.
	cmd := exec.CommandContext(ctx, ip, append([]string{"netns", "exec", nsName(lab, site), path}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// Dial connects from a site of a lab to an IP address and port: it has the
// signature of net.Dialer.DialContext once lab and site are given, and its
// connections may be used as any other.
func Dial(ctx context.Context, lab, site, network, address string) (conn net.Conn, err error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	err = inside(nsName(lab, site), func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in a site of a lab at an IP address and port.
func Listen(ctx context.Context, lab, site, network, address string) (l net.Listener, err error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	err = inside(nsName(lab, site), func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is Listen for "udp".
func ListenPacket(ctx context.Context, lab, site, network, address string) (c net.PacketConn, err error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	err = inside(nsName(lab, site), func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// literal refuses names: package net looks them up and dials what it finds in
// goroutines of its own, which would not be in the site.
func literal(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err == nil && net.ParseIP(host) == nil {
		err = fmt.Errorf("%s is not an IP address and port", address)
	}
	return err
}

// Sysctl sets a kernel parameter below net in a site of a lab, for example
// net.ipv4.tcp_wmem. A new site has the machine's.
func Sysctl(lab, site, name, value string) error {
	if !strings.HasPrefix(name, "net.") || strings.ContainsAny(name, "/") {
		return fmt.Errorf("sysctl %s is not one of a network namespace", name)
	}
	return inside(nsName(lab, site), func() error {
		// No O_CREAT: what is not there is not a parameter.
		f, err := os.OpenFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(value)
		return err
	})
}

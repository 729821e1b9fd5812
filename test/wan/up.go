package wan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Config is a lab to be brought up.
type Config struct {
	Name string // of the lab, 1 to 20 of a-z and 0-9
	Topo Topo
	// Priority is that of SCHED_RR, 1 to 99, which keeps a busy machine from
	// adding to delays; 0 leaves the scheduling as it is.
	Priority int
	Log      *slog.Logger
	Ready    func() // called when the sites can be used
}

// Up creates the sites, routes between them until ctx is done or something
// fails, and removes them. It puts the whole process into SCHED_RR, so it wants
// a process of its own.
func Up(ctx context.Context, cfg Config) (err error) {
	r, err := newRouter(cfg.Topo)
	if err != nil {
		return err
	}
	lock, err := claim(cfg.Name)
	if err != nil {
		return err
	}
	defer func() {
		notes, down := release(cfg.Name, lock)
		for _, note := range notes {
			cfg.Log.Warn(note)
		}
		err = errors.Join(err, down)
	}()
	// What a lab of this name left when it crashed.
	if _, err := removeNamespaces(cfg.Name); err != nil {
		return err
	}
	if err := os.Remove(socketPath(cfg.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, s := range r.sites {
		if s.ns, err = newNamespace(nsName(cfg.Name, s.Name), s.Addr, r.mtu); err != nil {
			return fmt.Errorf("site %s: %w", s.Name, err)
		}
		// Nothing closes the TUN: the router may be reading it, and ends with the
		// process.
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", socketPath(cfg.Name))
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := realtime(cfg.Priority); err != nil {
		cfg.Log.Warn("without real-time priority delays are inaccurate on a busy machine", "error", err)
	}
	if r.used, err = usageNow(); err != nil {
		return err
	}
	r.resetAt = r.now()
	failed := make(chan error, 2)
	go func() { failed <- r.run() }()
	go func() { failed <- http.Serve(listener, r) }()
	cfg.Ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// realtime puts all threads, and by inheritance all later ones, into SCHED_RR.
// (A nice value does not help: it does not reach beyond the session's
// autogroup.)
func realtime(priority int) error {
	if priority == 0 {
		return nil
	}
	threads, err := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		tid, bad := strconv.Atoi(t.Name())
		if bad != nil {
			continue
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: uint32(priority)}
		if set := unix.SchedSetAttr(tid, &attr, 0); !errors.Is(set, unix.ESRCH) { // it has ended
			err = errors.Join(err, set)
		}
	}
	return err
}

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/preflight"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/blobs/drivers"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/telemetry"
	"github.com/portolan/portolan/node/wire"
)

// Config is what [Run] needs.
type Config struct {
	Settings config.Config
	Logger   *slog.Logger
	Version  string // of the binary
	// AdminPassword is for the administrator of a new mesh; empty: one is made.
	// It is not read where the mesh is there already.
	AdminPassword string
	// Profile is the raft timings of a new mesh; empty: lan. A mesh that is there
	// keeps its own, which is changed by command alone.
	Profile string
	// Notice takes what people must see once: a password that was made.
	Notice io.Writer
	// Now is the node's clock; nil is time.Now.
	Now func() time.Time
}

// Run runs a node until ctx ends, then stops it in order. On an empty data
// directory it makes a new mesh, if a site is named.
//
// A node whose control state is an old one, from a backup or from before a
// recovery, stops once the mesh can give it the present one, sets the old one
// aside, and starts again, all within Run.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	dir := cfg.Settings.Data
	lock, err := config.Lock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		var old *consensus.OutdatedError
		err := run(ctx, cfg, dir)
		var again *consensus.StartAgainError
		if errors.As(err, &again) && ctx.Err() == nil {
			cfg.Logger.Warn("the node starts again", "reason", again.Reason)
			continue
		}
		if !errors.As(err, &old) {
			return err
		}
		cfg.Logger.Debug("the node stopped to begin its control state anew", "err", err)
		kept, err := consensus.SetAside(filepath.Join(dir, raftDir), cfg.Now())
		if err != nil {
			return err
		}
		cfg.Logger.Warn("this node begins its control state anew, and keeps its content", "reason", old.Reason, "old_one", kept)
	}
}

// run is Run once.
func run(ctx context.Context, cfg Config, dir string) (err error) {
	format, made, err := config.ReadFormat(dir)
	if err != nil {
		return err
	}
	if !made && cfg.Settings.Witness {
		return fmt.Errorf("the data directory %s is empty, and a witness makes no mesh: make it a member first, with: portolan join TOKEN --witness --data %s", dir, dir)
	}
	if !made && cfg.Settings.Site == "" {
		return fmt.Errorf("the data directory %s is empty: --site NAME makes a new mesh there, `portolan join TOKEN --data %s` makes it a site of one", dir, dir)
	}
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		return err
	}
	if made {
		if err := format.CheckNode(dir, id.ID); err != nil {
			return err
		}
	}
	n := &node{cfg: cfg, dir: dir, id: id, log: cfg.Logger.With("site", cfg.Settings.Site), stages: newStages(cfg.Logger)}
	defer func() {
		// In this order: what was started last needs what was opened first.
		err = errors.Join(err, n.stages.stop(), n.close())
	}()
	if err := n.open(ctx, made); err != nil {
		return err
	}
	if err := n.start(ctx, made, format.Mesh); err != nil {
		if ctx.Err() != nil {
			return nil // it was asked to stop while starting
		}
		return err
	}
	if made {
		// Now that it serves there: a start that fails changes nothing.
		changed, err := cfg.Settings.KeepPlace()
		if err != nil {
			return err
		}
		if len(changed) > 0 {
			n.log.Info("the node is at another place than before: the next start finds it here", "kept", changed)
		}
	}
	n.log.Info("serving", "url", cfg.Settings.RegistryURL, "node", id.ID, "version", cfg.Version)
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
		return nil
	case err := <-n.stages.ended:
		return fmt.Errorf("the node stops: %w", err)
	}
}

// node is what Run holds together.
type node struct {
	cfg    Config
	dir    string
	id     *identity.Identity
	log    *slog.Logger
	stages *stages
	closer []io.Closer

	metrics     *prometheus.Registry
	http        net.Listener
	certificate *certificate // nil: plain HTTP
	store       *store.Store // nil: a witness
	control     *wire.Listener
	raft        *consensus.Node
	content                                 // what follows once the control state is here
	heard       atomic.Pointer[gossip.Mesh] // gossip, for those who may ask before it is there
	checker     *preflight.Checker
}

// close closes what open opened, last first.
func (n *node) close() error {
	var errs []error
	for i := len(n.closer) - 1; i >= 0; i-- {
		if err := n.closer[i].Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// open takes all that can be refused (ports, directories) before anything is
// changed in the mesh.
func (n *node) open(ctx context.Context, made bool) error {
	s := n.cfg.Settings
	n.metrics = telemetry.NewRegistry(n.cfg.Version)
	if s.TLSCert != "" {
		c, err := newCertificate(s.TLSCert, s.TLSKey, n.cfg.Logger, n.cfg.Now)
		if err != nil {
			return err
		}
		n.certificate = c
		n.metrics.MustRegister(c.ends)
	}
	l, err := listen(ctx, s.HTTP, "--http")
	if err != nil {
		return err
	}
	n.http = l
	n.closer = append(n.closer, l)
	// Gossip and data open theirs once the control state says with whom to speak.
	if err := tryPorts(ctx, s); err != nil {
		return err
	}
	if !made {
		// A first start that was cut short before the mesh was made has told
		// nobody of it: begin anew.
		if err := os.RemoveAll(filepath.Join(n.dir, raftDir)); err != nil {
			return err
		}
	}
	var bucket *blobs.Backend
	if s.StoreDriver != "disk" && s.StoreDriver != "" {
		if bucket, err = drivers.New(ctx, s.StoreDriver, s.StoreParameters); err != nil {
			return fmt.Errorf("--store-driver, --store-parameters: %w", err)
		}
	}
	if s.Witness {
		return n.openControl(identity.StoreID{})
	}
	if n.store, err = store.Open(ctx, store.Config{
		Dir: filepath.Join(n.dir, storeDir), Identity: n.id, Logger: n.cfg.Logger, Now: n.cfg.Now, Bucket: bucket, Metrics: n.metrics,
		MaxUpload: s.MaxBlobBytes, MaxUploads: s.MaxUploads, MaxUploadsPerUser: s.MaxUploadsPerUser, UploadsKeptFor: s.UploadsKeptFor, ScrubRate: scrubRate(s.ScrubRate),
		Catalog: catalog.Options{Metrics: n.metrics, OnConflict: n.conflict},
	}); err != nil {
		return err
	}
	n.closer = append(n.closer, n.store)
	return n.openControl(n.store.ID())
}

// openControl opens the control port and raft.
func (n *node) openControl(store identity.StoreID) (err error) {
	s := n.cfg.Settings
	if n.control, err = wire.Listen(s.Control(), n.id, members{n}, n.cfg.Logger); err != nil {
		return err
	}
	n.closer = append(n.closer, n.control)
	n.metrics.MustRegister(n.control)
	profile, err := consensus.ParseProfile(n.cfg.Profile)
	if err != nil {
		return fmt.Errorf("--profile: %w", err)
	}
	n.raft, err = consensus.Open(consensus.Config{
		Dir: filepath.Join(n.dir, raftDir), Identity: n.id, Self: record(n.cfg, n.id, store),
		RaftListener: n.control.Raft(), Profile: profile, Draining: n.draining, Logger: n.cfg.Logger, Now: n.cfg.Now,
	})
	if err != nil {
		return err
	}
	n.checker = preflight.New(preflight.Config{Identity: n.id, Members: members{n}, View: n.view, Now: n.cfg.Now, Logger: n.log})
	n.metrics.MustRegister(n.raft)
	n.metrics.MustRegister(n.standing()...)
	return nil
}

// conflict reports two writes of one tag that had not seen one another. The
// event's name is the one that operators search for.
func (n *node) conflict(c catalog.Conflict) {
	n.log.Warn("tag.conflict: two sites set one tag at the same time; the loser stays pullable by its digest",
		"project_id", c.PID, "repository", c.Repo, "tag", c.Tag, "winner", c.Winner, "loser", c.Loser, "actor", c.Actor)
}

// Names below the data directory. node/config has those of the settings.
const (
	raftDir  = "raft"
	storeDir = "store"
)

// listen opens a TCP port; its error names the option that changes it.
func listen(ctx context.Context, addr, option string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	return l, wire.ListenError(addr, option, err)
}

// tryPorts takes the gossip and data ports for a moment.
func tryPorts(ctx context.Context, s config.Config) error {
	ports := []struct{ addr, option string }{{s.Gossip(), "--gossip-port"}, {s.Content(), "--data-port"}}
	if s.Witness {
		ports = ports[:1] // it has no data plane
	}
	for _, p := range ports {
		l, err := listen(ctx, p.addr, p.option)
		if err != nil {
			return err
		}
		l.Close()
	}
	var lc net.ListenConfig
	u, err := lc.ListenPacket(ctx, "udp", s.Gossip())
	if err != nil {
		return wire.ListenError(s.Gossip(), "--gossip-port", err)
	}
	return u.Close()
}

// tryAllPorts is tryPorts and the two that open takes.
func tryAllPorts(ctx context.Context, s config.Config) error {
	for _, p := range []struct{ addr, option string }{{s.HTTP, "--http"}, {s.Control(), "--control-port"}} {
		l, err := listen(ctx, p.addr, p.option)
		if err != nil {
			return err
		}
		l.Close()
	}
	return tryPorts(ctx, s)
}

// members is the node list as the control port asks it.
type members struct{ n *node }

// IsMember implements wire.Members.
func (m members) IsMember(id identity.NodeID) bool {
	return m.n.raft != nil && m.n.raft.IsMember(id)
}

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/preflight"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/registryapi"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
	"github.com/portolan/portolan/transfer/siblings"
	"github.com/portolan/portolan/transfer/swarm"
	"github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

// content is what moves and describes images.
type content struct {
	gossip     *gossip.Mesh
	host       *peer.Host
	sync       *sync.Sync
	budgets    *budget.Budgets
	swarm      *swarm.Swarm
	siblings   *siblings.Siblings
	reconciler *transfer.Reconciler
	tags       *tags.Door
	residency  *transfer.Residency
}

// start brings the parts up, each after those that it needs.
func (n *node) start(ctx context.Context, made bool, mesh identity.MeshID) error {
	if n.store != nil {
		n.stages.start("store", n.store.Run)
	}
	n.stages.start("control port", n.control.Run)
	n.stages.start("control calls", n.serveControl)
	n.stages.start("consensus", n.raft.Run)
	if !made {
		if err := n.create(ctx); err != nil {
			return err
		}
	} else if err := n.awaitState(ctx, mesh); err != nil {
		return err
	}
	if err := n.startGossip(ctx); err != nil {
		return err
	}
	var api registryapi.Config
	var err error
	if n.store == nil {
		api, err = n.startWitness()
	} else if err = n.startContent(); err == nil {
		api, err = n.api()
	}
	if err != nil {
		return err
	}
	if n.certificate != nil {
		api.TLS = n.certificate.config()
		n.stages.start("certificate", n.certificate.run)
	}
	server, err := registryapi.New(api)
	if err != nil {
		return err
	}
	n.metrics.MustRegister(server)
	if n.certificate == nil {
		n.log.Warn("the registry speaks plain HTTP, passwords included: give it --tls-cert and --tls-key outside of trusted networks", "address", n.http.Addr())
	}
	n.stages.start("registry", func(ctx context.Context) error { return server.Run(ctx, n.http) })
	return nil
}

// serveControl answers gRPC on the control port.
func (n *node) serveControl(ctx context.Context) error {
	server := wire.NewServer(members{n})
	n.raft.Register(server)
	preflight.RegisterPreflightServer(server, n.checker)
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = server.Serve(n.control.GRPC())
	}()
	select {
	case <-ctx.Done():
		// Calls under way belong to nodes that try again elsewhere.
		server.Stop()
		<-ended
		return nil
	case <-ended:
		return err
	}
}

// create makes a new mesh. The format file is written last: without it the next
// start begins anew.
func (n *node) create(ctx context.Context) error {
	mesh, password, err := newMesh(n.cfg, n.id, n.store.ID())
	if err != nil {
		return err
	}
	if err := n.raft.Bootstrap(ctx, mesh); err != nil {
		return err
	}
	if err := n.cfg.Settings.Save(); err != nil {
		return err
	}
	id := n.view().Mesh().ID
	if err := config.WriteFormat(n.dir, id, n.id.ID); err != nil {
		return err
	}
	n.log.Info("a new mesh is made", "mesh", id)
	if password != "" && n.cfg.Notice != nil {
		fmt.Fprintf(n.cfg.Notice, "The administrator is user %q with password %q; it is kept in %s.\n",
			"admin", password, AdminPasswordFile)
	}
	if n.cfg.Notice != nil {
		fmt.Fprintln(n.cfg.Notice, "Make the recovery key, without which there are no backups, with: portolan keys recovery create")
	}
	return nil
}

// stateLog is how often a start that waits for the control state says so.
const stateLog = 5 * time.Second

// awaitState waits until this node has the control state: at once on a restart,
// cut off or not; for a node that has just joined, when a leader has sent it.
func (n *node) awaitState(ctx context.Context, mesh identity.MeshID) error {
	tick := time.NewTicker(stateLog)
	defer tick.Stop()
	for {
		select {
		case <-n.raft.Ready():
			if id := n.view().Mesh().ID; id != mesh {
				return fmt.Errorf("the data directory %s is mesh %s's, but its control state is mesh %s's: restore the directory from a backup", n.dir, mesh, id)
			}
			if want, have := n.cfg.Profile, n.view().Mesh().Profile; want != "" && want != have {
				n.log.Warn("--profile is for a new mesh and changes nothing here: use portolan mesh profile set", "given", want, "profile", have)
			}
			if m, ok := n.view().Node(n.id.ID); ok && m.Site != n.cfg.Settings.Site {
				return fmt.Errorf("the data directory %s is that of site %q, not of %q: start it with --site %s, or name another --data", n.dir, m.Site, n.cfg.Settings.Site, m.Site)
			}
			return nil
		case <-tick.C:
			if why := n.closed(); why != "" {
				return errors.New(why) // it was removed before it ever came: there is nothing to serve
			}
			n.log.Info("waiting for the control state from the other sites")
		case err := <-n.stages.ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *node) view() *state.View { return n.raft.State().View() }

// seeds gives where the other nodes gossip.
func (n *node) seeds() []string {
	var out []string
	if n.closed() != "" {
		return nil // nobody would have it
	}
	for _, m := range n.view().Nodes() {
		if m.ID != n.id.ID {
			out = append(out, net.JoinHostPort(m.Host, strconv.Itoa(m.GossipPort)))
		}
	}
	return out
}

// startGossip starts to look for the others.
func (n *node) startGossip(ctx context.Context) error {
	s, log := n.cfg.Settings, n.cfg.Logger
	mesh := n.view().Mesh()
	keys, err := n.gossipKeys(ctx)
	if err != nil {
		return err
	}
	if n.gossip, err = gossip.New(gossip.Config{
		Self: n.id.ID, Site: s.Site, Level: command.Level, BindAddr: s.Bind, Port: s.GossipPort,
		AdvertiseHost: s.Advertise, AdvertisePort: s.GossipPort,
		Mesh: mesh.ID, Keys: keys, Seeds: n.seeds, Logger: log,
		Removed: n.leavesOut,
	}); err != nil {
		return err
	}
	n.metrics.MustRegister(n.gossip)
	n.heard.Store(n.gossip)
	n.stages.start("gossip", n.gossip.Run)
	n.stages.start("gossip keys", n.followGossipKeys)
	n.stages.start("watch of sites", n.watchSites)
	return nil
}

// startContent starts what moves and describes images.
func (n *node) startContent() error {
	s, log, reg := n.cfg.Settings, n.cfg.Logger, n.metrics
	var err error
	if n.host, err = peer.New(peer.Config{
		Identity: n.id, Listen: s.Content(), Logger: log, Registerer: reg,
		Members: func(id identity.NodeID) (string, int, bool) {
			m, ok := n.view().Node(id)
			return m.Host, m.DataPort, ok && !m.Witness && n.closed() == ""
		},
	}); err != nil {
		return err
	}
	for _, advice := range peer.KernelAdvice() {
		log.Info("the machine's TCP settings slow transfers over long links", "advice", advice)
	}
	n.stages.start("data plane", n.host.Run)
	data := plane.Of(n.host)
	if n.sync, err = sync.New(sync.Config{
		Self: n.id.ID, Site: s.Site, Dir: n.dir, Store: n.store, State: n.raft.State(),
		Host: data, Announcer: n.gossip, Now: n.cfg.Now, Logger: log, Registerer: reg,
	}); err != nil {
		return err
	}
	n.gossip.OnHint(n.sync.Hint)
	n.gossip.OnChange(n.sync.PeersChanged)
	n.budgets = budget.New(s.Site, n.siteOf)
	n.budgets.Apply(n.view())
	if n.swarm, err = swarm.New(swarm.Config{
		Store: n.store, Host: data, Holders: n.sync, Pacer: n.budgets, Signer: n.id, Logger: log, Registerer: reg,
		Access: n.sync.Access, Small: n.sync.Small, Prove: n.sync.Prove,
		KnownSigner: func(id identity.NodeID) bool { m, ok := n.view().Node(id); return ok && !m.Witness },
		SiteOf:      n.siteOf,
	}); err != nil {
		return err
	}
	if n.siblings, err = siblings.New(siblings.Config{
		Catalog: n.store.Catalog(), Fetch: n.swarm.Fetch, Logger: log, Registerer: reg,
		MayRest: func(pid identity.ProjectID) bool {
			v := n.view()
			p, ok := v.ProjectByPID(pid)
			return ok && !p.Deleted() && v.MayRest(p, s.Site)
		},
	}); err != nil {
		return err
	}
	if n.reconciler, err = transfer.New(transfer.Config{
		Self: n.id.ID, Site: s.Site, Store: n.store, State: n.raft.State(), Swarm: n.swarm, Sync: n.sync, PushesTold: true,
		Now: n.cfg.Now, Logger: log, Registerer: reg,
	}); err != nil {
		return err
	}
	if n.tags, err = tags.New(tags.Config{
		Self: n.id.ID, Site: s.Site, State: n.raft.State(), Catalog: n.store.Catalog(), Control: n.raft, Sync: n.sync, Copies: n.reconciler,
		Pushed: n.reconciler.Pushed, Deleting: n.reconciler.BeginPush, ClockOff: n.sync.ClockOff, Now: n.cfg.Now, Logger: log,
	}); err != nil {
		return err
	}
	n.residency = transfer.NewResidency(transfer.ResidencyConfig{
		Self: n.id.ID, Site: s.Site, State: n.raft.State(), Store: n.store, Sync: n.sync, Control: n.raft, Copies: n.reconciler,
		Settle: n.tags.Settle, Abandon: n.swarm.Abandon, Now: n.cfg.Now, Logger: log,
	})
	n.checker.Start(preflight.Parts{Gossip: n.gossip, Host: data, Pacer: n.budgets, Store: n.store})
	n.stages.start("bandwidth budgets", func(ctx context.Context) error { return n.budgets.Run(ctx, n.raft.State()) })
	n.stages.start("transfer of blobs", n.swarm.Run)
	n.stages.start("rest of images that are pulled", n.siblings.Run)
	n.stages.start("exchange of catalogues", n.sync.Run)
	n.stages.start("reconciler", n.reconciler.Run)
	n.stages.start("tags", n.tags.Run)
	n.stages.start("residency", n.residency.Run)
	n.stages.start("cut-off of removed nodes", n.cutOff)
	n.stages.start("memory", pace)
	n.stages.start("memory of the start", giveBack(n.sync.FirstDone(), debug.FreeOSMemory))
	return nil
}

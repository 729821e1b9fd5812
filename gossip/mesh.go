package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/telemetry"
	"github.com/portolan/portolan/node/wire"
)

// Timing of failure detection: a node that is killed is missed at its next
// probe (1 to 2 s with few nodes), suspected for suspicionMult × probeInterval,
// then lost: about 8 s, and 15 s with ten nodes, where several must agree.
const (
	probeInterval = time.Second
	// probeTimeout covers round trips up to 400 ± 100 ms with room; what is
	// slower is asked by way of others and by TCP before it is suspected.
	probeTimeout  = 800 * time.Millisecond
	suspicionMult = 6
	// gossipInterval is how soon a change of the member list goes out.
	gossipInterval = 200 * time.Millisecond
	// pushPullInterval is the net under lost packets.
	pushPullInterval = 30 * time.Second
	// streamTimeout bounds a full exchange. The list is a few kilobytes.
	streamTimeout = 10 * time.Second
	// reclaimAfter lets a node come back under another address (its key moved
	// to another machine) when its old one is dead that long.
	reclaimAfter = 30 * time.Second
	// leaveTimeout bounds the good-bye.
	leaveTimeout = time.Second
	// goodbyeAhead is the head start of our word over memberlist's: its queue
	// takes the last packet first.
	goodbyeAhead = 50 * time.Millisecond
)

const (
	// packetBytes keeps a packet whole on every path, tunnels included.
	packetBytes = 1400
	// MaxPayload is the largest payload that Announce takes: with the envelope,
	// the label and the cipher's own it stays below packetBytes.
	MaxPayload = 1200
	// maxMetaBytes is well under memberlist's hard limit of 512.
	maxMetaBytes = 200
	// keyBytes: AES-256.
	keyBytes = 32
	// hintQueue is how many announcements wait for the handler; more are
	// dropped and counted, since the next exchange brings what they hinted at.
	hintQueue = 1024
	// eventQueue is how many log lines wait.
	eventQueue = 256
	// rttSamples: the median of the last five pings.
	rttSamples = 5
	// forgetAfter is how long a lost node stays in Members.
	forgetAfter = 24 * time.Hour
	// resolveTimeout bounds the look-up of the advertised name at start.
	resolveTimeout = 5 * time.Second
)

// DefaultRejoinEvery is how often lost nodes are looked for.
const DefaultRejoinEvery = 15 * time.Second

// Config says who this node is and how it reaches the others.
type Config struct {
	// Self is this node; it is the name that others know it by.
	Self identity.NodeID
	// Site is the name of its site.
	Site string
	// Level is the highest command level that the binary understands.
	Level uint32
	// BindAddr and Port are listened on, TCP and UDP. Port 0 takes a free one.
	BindAddr string
	Port     int
	// AdvertiseHost is the name or address that others dial, AdvertisePort the
	// port (0: Port). A name is looked up once, by New.
	AdvertiseHost string
	AdvertisePort int
	// Mesh keeps meshes apart that meet on one network.
	Mesh identity.MeshID
	// Keys are AES-256 keys, 32 bytes each. The first encrypts, all decrypt.
	Keys [][]byte
	// Seeds gives host:port of every known node, own one included or not. It is
	// asked again and again, from one goroutine.
	Seeds func() []string
	// Removed says of a node whether it was taken out of the mesh for ever; nil:
	// none was. It is asked under memberlist's locks and must answer from memory.
	Removed func(identity.NodeID) bool
	// RejoinEvery is DefaultRejoinEvery if zero.
	RejoinEvery time.Duration
	// Logger is where the log goes.
	Logger *slog.Logger
}

// Member is a node as gossip sees it.
type Member struct {
	ID   identity.NodeID
	Site string
	// Host is the address (IP:port) that the node gossips at.
	Host string
	// Level and Draining are what the node says of itself.
	Level    uint32
	Draining bool
	// Alive: not known to be lost or gone.
	Alive bool
	// RTT is the median of the last round trips; 0 while none is known.
	RTT time.Duration
	// Since is when Alive last changed, by this node's clock.
	Since time.Time
}

// Mesh is this node's part in the gossip.
type Mesh struct {
	cfg   Config
	log   *slog.Logger
	tr    *transport
	list  *memberlist.Memberlist
	ring  *memberlist.Keyring
	hints chan *Hint
	// changed has room for one: many changes become one call.
	changed chan struct{}
	events  chan event

	closeOnce sync.Once

	probes probes

	announced, received prometheus.Counter
	dropped             *prometheus.CounterVec
	refusals            *prometheus.CounterVec
	membersDesc         *prometheus.Desc

	// mu is a leaf lock: memberlist's callbacks take it under memberlist's own
	// lock, so no memberlist method is called while it is held.
	mu       sync.Mutex
	members  map[identity.NodeID]*member
	blocked  map[string]identity.NodeID // where removed nodes were (IP:port)
	onHint   func(identity.NodeID, byte, []byte)
	onChange func()
	draining bool
}

type member struct {
	Member
	rtts []time.Duration
	pong time.Time // last answer to a packet; before the first, when it came alive
	deaf bool      // it was told that none comes
	// leaving: it said that it is about to stop.
	leaving bool
}

// event is something to log, from a callback that must not block.
type event struct {
	msg  string
	node identity.NodeID
	site string
	addr string
	warn bool
}

// New opens the gossip port. Nothing is joined before Run. Call Run or Close.
func New(cfg Config) (*Mesh, error) {
	if cfg.Self.IsZero() || cfg.Mesh.IsZero() || cfg.Seeds == nil || cfg.Logger == nil {
		return nil, errors.New("gossip: Self, Mesh, Seeds and Logger are needed")
	}
	if err := checkKeys(cfg.Keys); err != nil {
		return nil, err
	}
	keyring, err := memberlist.NewKeyring(cfg.Keys, cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	if cfg.RejoinEvery == 0 {
		cfg.RejoinEvery = DefaultRejoinEvery
	}
	m := &Mesh{
		cfg: cfg, log: cfg.Logger, ring: keyring,
		hints:   make(chan *Hint, hintQueue),
		changed: make(chan struct{}, 1),
		events:  make(chan event, eventQueue),
		members: make(map[identity.NodeID]*member),
		blocked: make(map[string]identity.NodeID),
	}
	m.initMetrics()
	if n := len(m.meta()); n > maxMetaBytes {
		return nil, fmt.Errorf("site name %q is too long for gossip (%d bytes of node data, at most %d): choose a shorter one", cfg.Site, n, maxMetaBytes)
	}
	m.tr, err = newTransport(cfg.BindAddr, cfg.Port)
	if err != nil {
		return nil, err
	}
	m.tr.refused = func(reason string) { m.refusals.WithLabelValues(reason).Inc() }
	m.tr.refuse = filter{packet: m.refusesPacket, stream: m.refusesStream, dial: m.dialsRemoved}
	m.tr.advertise = m.resolveAdvertise()
	m.tr.port = cfg.AdvertisePort
	if m.tr.port == 0 {
		m.tr.port = m.tr.boundPort()
	}
	m.tr.start()
	m.list, err = memberlist.Create(m.listConfig(keyring))
	if err != nil {
		_ = m.tr.Shutdown()
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	return m, nil
}

func (m *Mesh) listConfig(keyring *memberlist.Keyring) *memberlist.Config {
	c := memberlist.DefaultWANConfig()
	c.Name = m.cfg.Self.String()
	c.Label = m.cfg.Mesh.String()
	c.Transport = m.tr
	c.BindPort, c.AdvertisePort = m.tr.boundPort(), m.tr.port
	c.Keyring = keyring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	// Packets are small, and a decompressor is one thing less to feed.
	c.EnableCompression = false
	c.UDPBufferSize = packetBytes
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult = suspicionMult
	c.GossipInterval = gossipInterval
	c.PushPullInterval = pushPullInterval
	c.TCPTimeout = streamTimeout
	c.DeadNodeReclaimTime = reclaimAfter
	c.MsgpackUseNewTimeFormat = true
	c.Logger = telemetry.StdLog(m.log, "memberlist", func(line string, _ ...any) bool {
		if unreadable(line) {
			m.tr.count(refusedUnreadable)
		}
		return repeats(line)
	})
	c.Delegate = (*delegate)(m)
	c.Events = (*delegate)(m)
	c.Alive = (*delegate)(m)
	c.Conflict = (*delegate)(m)
	c.Ping = (*delegate)(m)
	return c
}

// resolveAdvertise gives the address to tell others. A name server that is
// down must not keep a node from starting: gossip then names the machine's own
// address, and the others still find this node by its name.
func (m *Mesh) resolveAdvertise() net.IP {
	host := m.cfg.AdvertiseHost
	if host == "" {
		host = m.cfg.BindAddr
	}
	if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
		return ip.Unmap().AsSlice()
	} else if err != nil && host != "" {
		ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
		defer cancel()
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err == nil && len(ips) > 0 {
			// IPv4 first: the bound socket is IPv4 unless told otherwise.
			slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.Unmap().BitLen() - b.Unmap().BitLen() })
			return ips[0].Unmap().AsSlice()
		}
		m.log.Warn("advertised name cannot be looked up, gossip names this machine's own address", "host", host, "err", err)
	}
	if ip, err := netip.ParseAddr(m.cfg.BindAddr); err == nil && !ip.IsUnspecified() {
		return ip.Unmap().AsSlice()
	}
	return wire.HostAddress().AsSlice()
}

// Port is the port that is listened on.
func (m *Mesh) Port() int { return m.tr.boundPort() }

// Run looks for the others, keeps looking, and hands hints and changes to the
// handlers. When ctx ends it says good-bye, closes the port and returns nil
// when its goroutines have ended. It is called once.
func (m *Mesh) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { m.dispatch(ctx) })
	m.rejoinLoop(ctx)
	wg.Wait()
	m.send(kindGoodbye, nil)
	time.Sleep(goodbyeAhead)
	if err := m.list.Leave(leaveTimeout); err != nil {
		m.log.Debug("gossip left without a good-bye", "err", err)
	}
	return m.Close()
}

// Close closes the port without a good-bye. It is for a Mesh that never ran.
func (m *Mesh) Close() (err error) {
	m.closeOnce.Do(func() { err = m.list.Shutdown() })
	return err
}

// dispatch calls the handlers, one call at a time.
func (m *Mesh) dispatch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-m.hints:
			m.mu.Lock()
			f := m.onHint
			m.mu.Unlock()
			from, err := identity.NodeIDFromBytes(h.GetFrom())
			if f != nil && err == nil && h.GetKind() <= 0xff {
				f(from, byte(h.GetKind()), h.GetPayload())
			}
		case <-m.changed:
			m.mu.Lock()
			f := m.onChange
			m.mu.Unlock()
			if f != nil {
				f()
			}
		case e := <-m.events:
			level := slog.LevelInfo
			if e.warn {
				level = slog.LevelWarn
			}
			m.log.Log(ctx, level, e.msg, "site", e.site, "node", e.node, "address", e.addr)
		}
	}
}

// OnHint sets the handler of announcements. It is called from Run, one call at
// a time; while it works, up to hintQueue announcements wait; those that come before OnHint
// are lost. from is as true as the gossip key is secret.
func (m *Mesh) OnHint(f func(from identity.NodeID, kind byte, payload []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onHint = f
}

// OnChange sets what is called, from Run, after Members has changed (round
// trips aside). Several changes may be one call; the first call tells of all
// that came before OnChange.
func (m *Mesh) OnChange(f func()) {
	m.mu.Lock()
	m.onChange = f
	m.mu.Unlock()
	m.poke()
}

// poke makes a call of OnChange's handler due.
func (m *Mesh) poke() {
	select {
	case m.changed <- struct{}{}:
	default: // one is due already
	}
}

// Announce sends payload (at most [MaxPayload] bytes) to every live member at
// once, by one packet each, which may get lost.
func (m *Mesh) Announce(kind byte, payload []byte) {
	if len(payload) > MaxPayload {
		m.dropped.WithLabelValues("too large").Inc()
		m.log.Warn("announcement is too large and was not sent", "kind", kind, "bytes", len(payload), "max", MaxPayload)
		return
	}
	m.send(uint32(kind), payload)
}

// kindGoodbye is the kind of a node's last hint. Kinds of announcements are
// bytes; what is above is gossip's own, and nodes that do not know it drop it.
const kindGoodbye = 0x100

func (m *Mesh) send(kind uint32, payload []byte) {
	b, err := proto.Marshal(&Hint{From: m.cfg.Self[:], Kind: kind, Payload: payload})
	if err != nil {
		return // bytes and numbers always encode
	}
	m.mu.Lock()
	to := make([]memberlist.Address, 0, len(m.members))
	for id, x := range m.members {
		if x.Alive && id != m.cfg.Self {
			to = append(to, memberlist.Address{Addr: x.Host, Name: id.String()})
		}
	}
	m.mu.Unlock()
	for _, a := range to {
		if err := m.list.SendToAddress(a, b); err != nil {
			m.log.Debug("announcement not sent", "address", a.Addr, "err", err)
			continue
		}
		m.announced.Inc()
	}
}

// SetDraining tells the others whether this node wants to be left in peace. It
// waits a moment for the word to go out.
func (m *Mesh) SetDraining(v bool) {
	m.mu.Lock()
	same := m.draining == v
	m.draining = v
	m.mu.Unlock()
	if same {
		return
	}
	if err := m.list.UpdateNode(leaveTimeout); err != nil {
		m.log.Debug("draining not told yet", "err", err)
	}
}

// Members lists this node and all that were seen in the last day, by ID.
func (m *Mesh) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Member, 0, len(m.members))
	for _, x := range m.members {
		v := x.Member
		v.RTT = median(x.rtts)
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b Member) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return all
}

// Alive reports whether id is thought to be alive.
func (m *Mesh) Alive(id identity.NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.members[id]
	return x != nil && x.Alive
}

// RTT gives the median round trip to id; false while none was measured.
func (m *Mesh) RTT(id identity.NodeID) (time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.members[id]
	if x == nil || len(x.rtts) == 0 {
		return 0, false
	}
	return median(x.rtts), true
}

func median(v []time.Duration) time.Duration {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

func (m *Mesh) initMetrics() {
	m.announced = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "portolan_gossip_announcements_sent_total", Help: "Announcements sent, one per receiver."})
	m.received = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "portolan_gossip_announcements_received_total", Help: "Announcements received."})
	m.dropped = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "portolan_gossip_announcements_dropped_total", Help: "Announcements dropped, by reason."}, []string{"reason"})
	m.refusals = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "portolan_gossip_refusals_total", Help: "Packets and streams that were refused, by reason."}, []string{"reason"})
	m.membersDesc = prometheus.NewDesc("portolan_gossip_members_count",
		"Nodes that gossip knows, by state.", []string{"state"}, nil)
}

// Describe implements prometheus.Collector.
func (m *Mesh) Describe(ch chan<- *prometheus.Desc) {
	m.announced.Describe(ch)
	m.received.Describe(ch)
	m.dropped.Describe(ch)
	m.refusals.Describe(ch)
	ch <- m.membersDesc
}

// Collect implements prometheus.Collector.
func (m *Mesh) Collect(ch chan<- prometheus.Metric) {
	m.announced.Collect(ch)
	m.received.Collect(ch)
	m.dropped.Collect(ch)
	m.refusals.Collect(ch)
	var alive, lost int
	for _, x := range m.Members() {
		if x.Alive {
			alive++
		} else {
			lost++
		}
	}
	ch <- prometheus.MustNewConstMetric(m.membersDesc, prometheus.GaugeValue, float64(alive), "alive")
	ch <- prometheus.MustNewConstMetric(m.membersDesc, prometheus.GaugeValue, float64(lost), "lost")
}

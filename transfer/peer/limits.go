package peer

import (
	"io"
	"math"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	libp2pyamux "github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/libp2p/go-yamux/v5"
)

// Limits. libp2p's own grow with the machine's memory and, when one is reached,
// windows stop growing without a word (kubo#8680); ours are the same
// everywhere, and say so (windows). A mesh has tens of sites, not thousands.
const (
	muxerID = libp2pyamux.ID

	// maxStreamWindow is twice what a flight asks for ahead of a peer (16 MiB): a
	// receiver gives back half of a window at a time, so a window holds twice the
	// bandwidth times round trip that it is good for.
	maxStreamWindow = 32 << 20
	// keepAliveInterval finds a dead connection in about this plus writeTimeout.
	keepAliveInterval = 15 * time.Second
	// writeTimeout is yamux's own valve for a connection that takes no bytes.
	writeTimeout = 10 * time.Second

	// maxNodes is how many peers at most are connected at once.
	maxNodes = 256
	// maxConnsPerPeer covers both sides dialing at once, and a reconnect while
	// the old connections are not yet known to be dead.
	maxConnsPerPeer = 2 * (1 + MaxLines)
	// maxConnsPerAddress: nodes may share one address (behind NAT, in tests).
	maxConnsPerAddress = 192
	// connsPerAddressPerSecond and connBurstPerAddress slow down a stranger that
	// makes us do TLS handshakes.
	connsPerAddressPerSecond = 4
	connBurstPerAddress      = 128

	// Streams. Each has a first window of 256 KiB at both ends, which yamux gives
	// before anybody is asked, whoever opened it: so the number of streams is memory.
	//
	// Of a mesh of n other nodes, streams of blobs are at most bulkStreams in each
	// direction, as each node opens its part of that to each other (StreamsEach);
	// beside them there are n that tell what a node has, in each direction, and those
	// of questions and of the catalogue, which are closed when they are answered. At 16
	// other nodes that is 112 + 16 in each direction, which is all; from 28 on, streams
	// are refused when all are busy in both directions at once, and tried again.
	bulkStreams = 112
	// minStreamsEach is what a node may open to each other in the largest mesh: one for
	// each class of what is wanted (clients, pushes, rules) and one for small blobs. From
	// 33 other nodes on that is more than one admits of all at once: what it has for
	// each is shared out there (admitted).
	minStreamsEach = 4
	// maxStreams is over all peers, in one direction; maxStreamsBoth in both.
	maxStreams     = 176
	maxStreamsBoth = 256
	// maxAdmitted is how many streams of one protocol others may have here: from there
	// on they are shared out (admitted). maxProtocolStreams, per protocol and direction,
	// is the resource manager's: some more, for those that are being reset. Whatever
	// one protocol is flooded with, 32 are left for the others.
	maxAdmitted        = 128
	maxProtocolStreams = maxStreams - 32
	// maxStreamsPerPeer is per protocol and direction.
	maxStreamsPerPeer = 32
	// reservedStreams are those of a peer that StreamsEach leaves out: streams end
	// later at the side that they were opened to.
	reservedStreams = 4
	// maxStreamsPerPeerTotal is over all protocols, libp2p's own included, in one
	// direction: what one floods with two protocols leaves more than half to others.
	maxStreamsPerPeerTotal = 64

	// Receive windows of all peers together: 64 MiB of first ones, and as much for
	// growth, so that neither a stream nor its growth depends on how many, or how
	// large, the others are. Growth of 64 MiB is 1.6 Gbit/s at 160 ms over all peers.
	firstWindow     = 256 << 10
	maxFirstWindows = maxStreamsBoth * firstWindow
	maxGrowth       = 64 << 20
	maxWindowMemory = maxFirstWindows + maxGrowth // 128 MiB
	// maxPeerGrowth leaves a quarter to others. A window takes at most a third of what
	// is left of all at a time, and half of what is left of its peer's.
	maxPeerGrowth  = maxGrowth / 4 * 3
	growthPart     = 3
	peerGrowthPart = 2
	// maxPeerWindowMemory is for the resource manager's wall.
	maxPeerWindowMemory = maxOpenedPerPeer*firstWindow + maxPeerGrowth // 88 MiB
	// maxOpenedPerPeer are a peer's streams in both directions, and some that are being
	// refused: yamux charges a window before anybody can refuse the stream.
	maxOpenedPerPeer = 2*maxStreamsPerPeerTotal + 32
)

// StreamsEach is how many streams of one protocol this node may keep open to each
// other one: if all keep to it, a node that all others open streams to has no more
// than it admits. It changes with the number of nodes that are connected.
func (h *Host) StreamsEach() int {
	return min(max(minStreamsEach, bulkStreams/max(1, int(h.peers.Load()))), maxStreamsPerPeer-reservedStreams)
}

// muxer is libp2p's yamux with larger windows (a copy: the default is shared by
// the whole process).
func muxer() *libp2pyamux.Transport {
	cfg := yamux.DefaultConfig()
	cfg.MaxStreamWindowSize = maxStreamWindow
	cfg.KeepAliveInterval = keepAliveInterval
	cfg.ConnectionWriteTimeout = writeTimeout
	cfg.LogOutput = io.Discard
	cfg.ReadBufSize = 0                     // TLS buffers already
	cfg.MaxIncomingStreams = math.MaxUint32 // the resource manager limits them
	return (*libp2pyamux.Transport)(cfg)
}

func resourceManager() (network.ResourceManager, error) {
	const unlimitedMemory = rcmgr.Unlimited64 // system and peer limits hold
	streams := func(n rcmgr.LimitVal, memory rcmgr.LimitVal64) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{
			Streams: 2 * n, StreamsInbound: n, StreamsOutbound: n,
			Conns: rcmgr.Unlimited, ConnsInbound: rcmgr.Unlimited, ConnsOutbound: rcmgr.Unlimited,
			FD: rcmgr.Unlimited, Memory: memory,
		}
	}
	withConns := func(l rcmgr.ResourceLimits, conns rcmgr.LimitVal) rcmgr.ResourceLimits {
		l.Conns, l.ConnsInbound, l.ConnsOutbound, l.FD = 2*conns, conns, conns, 2*conns
		return l
	}
	system := withConns(streams(maxStreams, maxWindowMemory), (2+MaxLines)*maxNodes)
	system.Streams = maxStreamsBoth
	one := rcmgr.ResourceLimits{
		Streams: 1, StreamsInbound: 1, StreamsOutbound: 1,
		Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: unlimitedMemory,
	}
	limits := rcmgr.PartialLimitConfig{
		System:    system,
		Transient: withConns(streams(maxStreams, maxFirstWindows), maxNodes), // not yet authenticated
		// No address is trusted more than another.
		AllowlistedSystem:    system,
		AllowlistedTransient: withConns(streams(maxStreams, maxFirstWindows), maxNodes),
		ServiceDefault:       streams(maxStreams, unlimitedMemory),
		ServicePeerDefault:   streams(maxStreamsPerPeerTotal, unlimitedMemory),
		ProtocolDefault:      streams(maxProtocolStreams, unlimitedMemory),
		ProtocolPeerDefault:  streams(maxStreamsPerPeer, unlimitedMemory),
		PeerDefault:          withConns(streams(maxStreamsPerPeerTotal, maxPeerWindowMemory), maxConnsPerPeer),
		Conn:                 one,
		Stream:               one,
	}
	perAddress := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: maxConnsPerAddress}}
	perAddress6 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: maxConnsPerAddress}}
	perSecond := rate.Limit{RPS: connsPerAddressPerSecond, Burst: connBurstPerAddress}
	return rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(perAddress, perAddress6),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{
				{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, // zero limit: none
				{Prefix: netip.MustParsePrefix("::1/128")},
			},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: perSecond}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: perSecond}},
				GracePeriod:      time.Minute,
			},
		}),
	)
}

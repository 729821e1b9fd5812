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
// everywhere. A mesh has tens of sites, not thousands.
const (
	muxerID = libp2pyamux.ID

	// maxStreamWindow lets one stream fill 1.7 Gbit/s at 300 ms; libp2p's 16 MiB
	// stops at a quarter of that.
	maxStreamWindow = 64 << 20
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
	// maxStreamsPerPeer is per protocol and direction.
	maxStreamsPerPeer = 32
	// maxProtocolStreams is per protocol over all peers.
	maxProtocolStreams = 1024
	// maxStreamsPerPeerTotal is over all protocols, libp2p's own included.
	maxStreamsPerPeerTotal = 160
	maxStreams             = 4096

	// Receive windows grow with yamux priority 128, for which the resource
	// manager gives out half of a limit: all windows together grow to 128 MiB,
	// those of one peer to 96 MiB. The other half is for first windows (256 KiB a
	// stream), so a new stream can always be opened.
	maxWindowMemory     = 256 << 20
	maxPeerWindowMemory = 192 << 20
)

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
	one := rcmgr.ResourceLimits{
		Streams: 1, StreamsInbound: 1, StreamsOutbound: 1,
		Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: unlimitedMemory,
	}
	limits := rcmgr.PartialLimitConfig{
		System:    system,
		Transient: withConns(streams(maxProtocolStreams, 64<<20), maxNodes), // not yet authenticated
		// No address is trusted more than another.
		AllowlistedSystem:    system,
		AllowlistedTransient: withConns(streams(maxProtocolStreams, 64<<20), maxNodes),
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

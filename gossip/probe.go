package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
)

// kindProbe is the kind of a packet whose sender wants to know whether it
// arrives, and says so by another way. Nobody answers it: each direction of a
// path is a question of its own.
const kindProbe = 0x101

const (
	// ProbeBytes is the payload of a full packet: paths that lose what is longer
	// than they carry let small packets through.
	ProbeBytes = MaxPayload
	// maxHeard bounds the tokens that are remembered: checks of a path are made by
	// hand, and use four each.
	maxHeard = 256
)

// Token tells one probe from all others; make it of chance.
type Token [16]byte

// probes remembers the tokens that came, and who waits for which.
type probes struct {
	mu    sync.Mutex // leaf lock: taken under memberlist's
	heard map[Token]chan struct{}
	order []Token // the oldest first
}

// of gives the channel that is closed when the token is heard.
func (p *probes) of(t Token) chan struct{} {
	c := p.heard[t]
	if c != nil {
		return c
	}
	if p.heard == nil {
		p.heard = map[Token]chan struct{}{}
	}
	if len(p.order) >= maxHeard {
		delete(p.heard, p.order[0])
		p.order = p.order[1:]
	}
	c = make(chan struct{})
	p.heard[t] = c
	p.order = append(p.order, t)
	return c
}

// take notes a probe that came.
func (p *probes) take(payload []byte) {
	if len(payload) < len(Token{}) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.of(Token(payload[:len(Token{})]))
	select {
	case <-c:
	default:
		close(c)
	}
}

// Heard waits until a probe with the token came, and returns false when ctx ends
// before.
func (m *Mesh) Heard(ctx context.Context, t Token) bool {
	m.probes.mu.Lock()
	c := m.probes.of(t)
	m.probes.mu.Unlock()
	select {
	case <-c:
		return true
	default:
	}
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

// SendProbe sends one packet from the gossip port to where a node gossips
// (host:port), filled up to size bytes of payload, at most ProbeBytes. It may get
// lost, as all packets of gossip.
func (m *Mesh) SendProbe(ctx context.Context, to identity.NodeID, addr string, t Token, size int) error {
	payload := make([]byte, max(len(t), min(size, ProbeBytes)))
	copy(payload, t[:])
	b, err := proto.Marshal(&Hint{From: m.cfg.Self[:], Kind: kindProbe, Payload: payload})
	if err != nil {
		return fmt.Errorf("encode a probe: %w", err)
	}
	at, err := lookup(ctx, addr)
	if err != nil {
		return err
	}
	return m.list.SendToAddress(memberlist.Address{Addr: at, Name: to.String()}, b)
}

// Exchange exchanges the whole list of members with a node at host:port, over a
// new TCP stream, as a node does that looks for the others. It may take the time
// of a dial that nobody answers (10 s).
func (m *Mesh) Exchange(ctx context.Context, to identity.NodeID, addr string) error {
	at, err := lookup(ctx, addr)
	if err != nil {
		return err
	}
	_, err = m.list.Join([]string{to.String() + "/" + at})
	if first := errors.Unwrap(err); first != nil {
		err = first // of a list, which takes several lines
	}
	return err
}

// lookup turns host:port into an address and port.
func lookup(ctx context.Context, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(ip.Unmap().String(), port), nil
	}
	ctx, cancel := context.WithTimeout(ctx, seedTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", err
	}
	if len(ips) == 0 {
		return "", fmt.Errorf("the name %s has no address", host)
	}
	return net.JoinHostPort(ips[0].Unmap().String(), port), nil
}

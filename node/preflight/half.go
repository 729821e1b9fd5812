package preflight

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/transfer/peer"
)

// Numbers of the ports in a Finding.
const (
	portControl uint32 = iota + 1
	portRaft
	portGossip // TCP
	portData
	portRegistry
	portPackets // UDP; no Finding has it
)

const (
	// packetEvery is how often the packets of a check are sent again.
	packetEvery = 200 * time.Millisecond
	// packetsFor is how long the checked node waits for them, packetsAfter the
	// asking one once the answer is there: it has waited all the time.
	packetsFor   = 3 * time.Second
	packetsAfter = time.Second
)

// look dials all ports of a node at once.
func (c *Checker) look(ctx context.Context, p *Parts, from, to state.Node) []*Finding {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	at := func(port int) string { return net.JoinHostPort(to.Host, strconv.Itoa(port)) }
	dials := []struct {
		port    uint32
		address string
		dial    func(ctx context.Context) (note string, err error)
	}{
		{portControl, at(to.ControlPort), func(ctx context.Context) (string, error) {
			_, err := c.askControl(ctx, to, &Question{Answerer: to.ID[:], Origin: from.ID[:]})
			return "", err
		}},
		{portRaft, at(to.ControlPort), func(ctx context.Context) (string, error) {
			conn, err := wire.DialRaft(ctx, at(to.ControlPort), to.ID, c.cfg.Identity, c.cfg.Members)
			if err != nil {
				return "", err
			}
			return "", conn.Close()
		}},
		{portGossip, at(to.GossipPort), func(ctx context.Context) (string, error) {
			return "", p.Gossip.Exchange(ctx, to.ID, at(to.GossipPort))
		}},
		{portData, at(to.DataPort), func(ctx context.Context) (string, error) { return "", p.Host.DialAfresh(ctx, to.ID) }},
		{portRegistry, to.RegistryURL, func(ctx context.Context) (string, error) { return getRegistry(ctx, to.RegistryURL) }},
	}
	out := make([]*Finding, 0, len(dials))
	var wg sync.WaitGroup
	for _, d := range dials {
		if d.port == portData && (p.Host == nil || to.Witness) || d.port == portRegistry && to.RegistryURL == "" {
			continue
		}
		f := &Finding{Port: d.port, Address: d.address}
		out = append(out, f)
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialFor)
			defer cancel()
			begun := time.Now()
			note, err := d.dial(ctx)
			f.TookNs, f.Note = time.Since(begun).Nanoseconds(), note
			if err != nil {
				var other *wire.WrongNodeError
				f.OtherKey = errors.As(err, &other) || peer.OtherKey(err)
				f.Error = phrase(err)
			}
		})
	}
	wg.Wait()
	return out
}

// sendProbes sends a small and a full packet of gossip again and again.
func (c *Checker) sendProbes(ctx context.Context, p *Parts, to state.Node, tokens []gossip.Token, done <-chan struct{}) {
	tick := time.NewTicker(packetEvery)
	defer tick.Stop()
	for {
		for i, t := range tokens {
			size := len(t)
			if i > 0 {
				size = gossip.ProbeBytes
			}
			if err := p.Gossip.SendProbe(ctx, to.ID, net.JoinHostPort(to.Host, strconv.Itoa(to.GossipPort)), t, size); err != nil {
				c.cfg.Logger.Debug("a packet of gossip was not sent", "node", to.ID, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// getRegistry asks a registry as a client begins. A certificate that this machine
// does not trust is said and no error: it is clients that must trust it.
func getRegistry(ctx context.Context, base string) (note string, err error) {
	for _, trusted := range []bool{true, false} {
		t := &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true}
		if !trusted {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} //nolint:gosec // nothing is sent but a question
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/", nil)
		if err != nil {
			return "", err
		}
		resp, err := (&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
		if trusted && untrusted(err) {
			note = "its certificate is not trusted by the machine that asked: " + phrase(err)
			continue
		}
		if err != nil {
			return "", err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			return "", fmt.Errorf("it answers GET /v2/ with %s: it is no registry, or something is in front of it", resp.Status)
		}
		return note, nil
	}
	return note, nil
}

func untrusted(err error) bool {
	var bad *tls.CertificateVerificationError
	var host x509.HostnameError
	return errors.As(err, &bad) || errors.As(err, &host)
}

// phrase says in few words what a dial ran into.
func phrase(err error) string {
	var (
		errno syscall.Errno
		other *wire.WrongNodeError
		u     *url.Error
		dns   *net.DNSError
		t     interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &other):
		return other.Error()
	case peer.OtherKey(err):
		return "a node with another key answers there"
	case errors.As(err, &dns):
		return "the name " + dns.Name + " cannot be resolved: " + dns.Err
	case errors.As(err, &errno) && !errno.Timeout():
		return errno.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &t) && t.Timeout():
		return "no answer"
	case errors.As(err, &u):
		return u.Err.Error()
	}
	return err.Error()
}

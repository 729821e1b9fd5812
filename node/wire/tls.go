package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/portolan/portolan/node/identity"
)

const (
	// ALPNRaft is for raft's own stream protocol; version in the name: 2 opens
	// with a greeting.
	ALPNRaft = "portolan-raft/2"
	// ALPNGRPC is HTTP/2, which gRPC speaks.
	ALPNGRPC = "h2"
)

// handshakeTimeout bounds a handshake on either side: three round trips at a
// second each on a bad day, with room.
const handshakeTimeout = 10 * time.Second

// Members tells who belongs to the mesh: the replicated node list.
type Members interface {
	IsMember(identity.NodeID) bool
}

// WrongNodeError says that an address answers, but with another node's key.
type WrongNodeError struct {
	Addr      string
	Want, Got identity.NodeID
}

func (e *WrongNodeError) Error() string {
	return fmt.Sprintf("the node at %s is %s, not %s as expected: check the address", e.Addr, e.Got, e.Want)
}

// ErrNotMember says that a node is not in the list of the mesh's nodes.
var ErrNotMember = errors.New("not a member of this mesh")

// baseConfig is common to both sides. Certificates are checked by key alone, in
// VerifyConnection, which crypto/tls calls on every handshake.
func baseConfig(id *identity.Identity) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.TLSCertificate(time.Now)},
		// Resumption would save a signature and cost a second way in.
		SessionTicketsDisabled: true,
	}
}

// clientConfig pins the server to want.
func clientConfig(id *identity.Identity, want identity.NodeID, alpn, addr string) *tls.Config {
	c := baseConfig(id)
	c.NextProtos = []string{alpn}
	c.InsecureSkipVerify = true //nolint:gosec // VerifyConnection pins the key, which is stricter
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		got, err := peerNodeID(cs)
		if err != nil {
			return err
		}
		if got != want || want.IsZero() {
			return &WrongNodeError{Addr: addr, Want: want, Got: got}
		}
		if cs.NegotiatedProtocol != alpn {
			return fmt.Errorf("the node at %s does not speak %s: check the address and the versions of both nodes", addr, alpn)
		}
		return nil
	}
	return c
}

// serverConfig takes any ed25519 client certificate, and on the raft side only
// a member's.
func serverConfig(id *identity.Identity, m Members) *tls.Config {
	c := baseConfig(id)
	c.NextProtos = []string{ALPNRaft, ALPNGRPC}
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		peer, err := peerNodeID(cs)
		if err != nil {
			return err
		}
		switch cs.NegotiatedProtocol {
		case ALPNGRPC:
			return nil
		case ALPNRaft:
			if m.IsMember(peer) {
				return nil
			}
			return fmt.Errorf("raft connection of node %s: %w", peer, ErrNotMember)
		default:
			// crypto/tls lets a client without ALPN through.
			return errNoALPN
		}
	}
	return c
}

var errNoALPN = errors.New("client named no protocol (ALPN)")

func peerNodeID(cs tls.ConnectionState) (identity.NodeID, error) {
	var cert *x509.Certificate
	if len(cs.PeerCertificates) > 0 {
		cert = cs.PeerCertificates[0]
	}
	return identity.NodeIDFromCertificate(cert)
}

// DialRaft opens a raft connection to node want at addr ("host:port"). It fails
// with an error that wraps [ErrNotMember] if want is no member, and with a
// [*WrongNodeError] if somebody else answers.
func DialRaft(ctx context.Context, addr string, want identity.NodeID, id *identity.Identity, m Members) (net.Conn, error) {
	if !m.IsMember(want) {
		return nil, fmt.Errorf("dial %s: node %s: %w", addr, want, ErrNotMember)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, clientConfig(id, want, ALPNRaft, addr))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("raft handshake with %s: %w", addr, err)
	}
	return conn, nil
}

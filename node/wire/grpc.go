package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/portolan/portolan/node/identity"
)

// AuthInfo is what gRPC knows of a peer: its proved key.
type AuthInfo struct {
	credentials.CommonAuthInfo
	// NodeID is the peer. It may be a stranger: see [Members].
	NodeID identity.NodeID
}

// AuthType implements credentials.AuthInfo.
func (AuthInfo) AuthType() string { return "portolan-node" }

func authInfo(id identity.NodeID) AuthInfo {
	return AuthInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		NodeID:         id,
	}
}

// PeerNodeID names the node at the other end of a call on the control port.
func PeerNodeID(ctx context.Context) (identity.NodeID, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return identity.NodeID{}, false
	}
	a, ok := p.AuthInfo.(AuthInfo)
	return a.NodeID, ok && !a.NodeID.IsZero()
}

// Credentials are for gRPC clients: they show id and accept no server but want.
func Credentials(id *identity.Identity, want identity.NodeID) credentials.TransportCredentials {
	return &clientCreds{id: id, want: want}
}

type clientCreds struct {
	id   *identity.Identity
	want identity.NodeID
}

func (c *clientCreds) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Client(raw, clientConfig(c.id, c.want, ALPNGRPC, raw.RemoteAddr().String()))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, nil, fmt.Errorf("control handshake: %w", err)
	}
	return conn, authInfo(c.want), nil
}

func (c *clientCreds) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for clients: use wire.ServerCredentials")
}

func (c *clientCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (c *clientCreds) Clone() credentials.TransportCredentials { v := *c; return &v }

// OverrideServerName does nothing: servers are known by key, not by name.
func (c *clientCreds) OverrideServerName(string) error { return nil }

// ServerCredentials are for a gRPC server on [Listener.GRPC], whose connections
// have their TLS handshake behind them.
func ServerCredentials() credentials.TransportCredentials { return serverCreds{} }

type serverCreds struct{}

func (serverCreds) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := c.(*Conn)
	if !ok {
		return nil, nil, fmt.Errorf("connection of %s did not come through the control listener", c.RemoteAddr())
	}
	return conn, authInfo(conn.node), nil
}

func (serverCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers: use wire.Credentials")
}

func (serverCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (serverCreds) Clone() credentials.TransportCredentials { return serverCreds{} }

func (serverCreds) OverrideServerName(string) error { return nil }

package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/portolan/portolan/node/identity"
)

// Bounds of a connection that gRPC serves. Members make many calls at a time;
// strangers may hold maxStrangers connections, so these bound what all of
// them can have a node keep: a window each, and their calls.
const (
	// maxCallBytes is far above an edit (command.MaxBytes) and a join.
	maxCallBytes = 1 << 20
	// maxCallHeaderBytes: our calls have a few hundred bytes of headers.
	maxCallHeaderBytes = 16 << 10
	// streamWindow and connWindow are what may come unread. They are fixed, since
	// gRPC's own grow to 16 MiB for whoever sends fast. At 300 ms they let 1.7
	// MB/s through: edits, never content.
	streamWindow = 256 << 10
	connWindow   = 512 << 10
	// maxCalls bounds the calls of one connection that are under way: each edit
	// that a node hands on is one.
	maxCalls = 1024
	// maxStrangerCalls is how many calls a connection makes before it is a member's. A
	// join is one; who needs more dials again.
	maxStrangerCalls = 16
	// prefaceTimeout bounds the beginning of HTTP/2, as handshakeTimeout does
	// that of TLS.
	prefaceTimeout = handshakeTimeout
)

// NewServer makes the gRPC server of the control port, for [Listener.GRPC].
// Strangers may call its methods too, a few times a connection: a joiner must, and
// a node that was removed learns so. The methods decide, by [PeerNodeID].
func NewServer(m Members) *grpc.Server {
	return grpc.NewServer(grpc.Creds(ServerCredentials()),
		grpc.MaxRecvMsgSize(maxCallBytes), grpc.MaxHeaderListSize(maxCallHeaderBytes), grpc.MaxConcurrentStreams(maxCalls),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow), grpc.ConnectionTimeout(prefaceTimeout),
		// Before gRPC has a goroutine for the call, or reads its message.
		grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) {
			p, ok := peer.FromContext(ctx)
			if !ok {
				return ctx, errNoPeer
			}
			a, ok := p.AuthInfo.(AuthInfo)
			if !ok {
				return ctx, errNoPeer
			}
			if !m.IsMember(a.NodeID) && a.calls.Add(1) > maxStrangerCalls {
				return ctx, status.Error(codes.PermissionDenied, "only members of the mesh may ask so often: dial again")
			}
			return ctx, nil
		}))
}

// errNoPeer cannot happen: ServerCredentials name everybody.
var errNoPeer = status.Error(codes.Unauthenticated, "a node key is needed")

// AuthInfo is what gRPC knows of a peer: its proved key.
type AuthInfo struct {
	credentials.CommonAuthInfo
	// NodeID is the peer. It may be a stranger: see [Members].
	NodeID identity.NodeID
	calls  *atomic.Int32 // of a connection that is served, while a stranger's
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
	a := authInfo(conn.node)
	a.calls = new(atomic.Int32)
	return conn, a, nil
}

func (serverCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers: use wire.Credentials")
}

func (serverCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (serverCreds) Clone() credentials.TransportCredentials { return serverCreds{} }

func (serverCreds) OverrideServerName(string) error { return nil }

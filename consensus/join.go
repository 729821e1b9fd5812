package consensus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
)

// JoinConfig is what [Join] needs.
type JoinConfig struct {
	// Token is the invitation.
	Token Token
	// Identity is the joining node's key.
	Identity *identity.Identity
	// Node is where the joining node will be and its store; Record fills in the rest.
	Node *command.Node
	// Site is the name that the user gave beside the token, if any.
	Site string
	// Now is the joiner's clock; nil is time.Now.
	Now func() time.Time
	// Progress is told what is being done, in words for people; may be nil.
	Progress func(string)
	// Dial opens TCP connections; nil is a net.Dialer.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	minLevel uint32 // minimumLevel, but for tests
}

// JoinResult is what a new member learns of its mesh.
type JoinResult struct {
	Mesh       identity.MeshID
	Nodes      []*command.Node
	Profile    Profile
	Generation [16]byte
	Level      uint32
}

// NotTakenError is a refusal by a mesh that certainly has not taken this node in:
// nothing that was asked before may have got through.
type NotTakenError struct{ Refusal *command.Error }

func (e *NotTakenError) Error() string { return e.Refusal.Error() }

// Unwrap gives the refusal.
func (e *NotTakenError) Unwrap() error { return e.Refusal }

// joinTimeout bounds one address: the leader's part takes two round trips.
const joinTimeout = 15 * time.Second

// Join makes this node a member: it turns to the token's addresses one after the
// other. It writes nothing; a join whose answer was lost can be repeated with the
// same token and key. The result's Nodes belong in Config.Seeds. A mesh that
// refuses says so by a *command.Error, within a [NotTakenError] if it is certain
// that it does not know this node.
func Join(ctx context.Context, cfg JoinConfig) (*JoinResult, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	if cfg.minLevel == 0 {
		cfg.minLevel = minimumLevel
	}
	if cfg.Site != "" && cfg.Site != cfg.Token.Site {
		return nil, &command.Error{Code: command.CodeInvalid, Message: fmt.Sprintf("the token is for site %q, not for %q: leave the site out, or make a token for it", cfg.Token.Site, cfg.Site)}
	}
	var tried []error
	for _, node := range cfg.Token.Nodes {
		cfg.Progress("asking the node at " + node.Addr)
		res, err := joinAt(ctx, cfg, node)
		var refusal *command.Error
		if errors.As(err, &refusal) && len(tried) == 0 {
			err = &NotTakenError{refusal}
		}
		if err == nil || refusal != nil {
			return res, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("join: %w", ctx.Err())
		}
		if tried = append(tried, err); len(tried) < len(cfg.Token.Nodes) {
			cfg.Progress(err.Error()) // the last one's is in the answer
		}
	}
	if len(tried) == 1 {
		return nil, tried[0]
	}
	return nil, fmt.Errorf("none of the token's %d addresses lets this node join: %w", len(tried), errors.Join(tried...))
}

func joinAt(ctx context.Context, cfg JoinConfig, to TokenNode) (*JoinResult, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	why := &firstError{}
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := cfg.Dial(ctx, addr)
		why.set(err)
		return c, err
	}
	conn, err := dialControl(to.Addr, &tellingCreds{wire.Credentials(cfg.Identity, to.ID), why}, dial, joinTimeout)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", to.Addr, err)
	}
	defer func() { _ = conn.Close() }()
	req := &JoinRequest{MeshId: cfg.Token.Mesh[:], TokenId: cfg.Token.ID, Secret: cfg.Token.Secret[:], Site: cfg.Token.Site, Node: Record(cfg.Identity, cfg.Node),
		NowUnixNs: cfg.Now().UnixNano(), MinLevel: cfg.minLevel}
	rep, err := NewControlClient(conn).Join(ctx, req)
	if err != nil {
		return nil, joinError(err, to, why.get())
	}
	cfg.Progress("the mesh has taken this node in as site " + cfg.Token.Site)
	return readJoinReply(cfg.Token, rep)
}

// joinError makes a sentence of a failed call.
func joinError(err error, to TokenNode, cause error) error {
	var wrong *wire.WrongNodeError
	var plain tls.RecordHeaderError
	var alert tls.AlertError
	var u *command.Unavailable
	err = fromStatus(err)
	var refusal *command.Error
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.As(cause, &wrong):
		return fmt.Errorf("at %s there is another node than the token names: check the address, or make a new token", to.Addr)
	case errors.As(cause, &plain), errors.As(cause, &alert):
		return fmt.Errorf("what answers at %s is not the control port of a portolan node (%w): check the address and the port, or make a new token", to.Addr, cause)
	case errors.Is(cause, context.DeadlineExceeded), errors.Is(cause, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s gives no answer (%w): check the address and the port, that the node there runs, and that no firewall is between; then run the same join again", to.Addr, cause)
	case errors.Is(cause, io.EOF), errors.Is(cause, io.ErrUnexpectedEOF), errors.Is(cause, syscall.ECONNRESET), errors.Is(cause, syscall.EPIPE):
		return fmt.Errorf("%s ended the connection before it had said who it is (%w): look whether the node there runs, and run the same join again", to.Addr, cause)
	case cause != nil:
		return fmt.Errorf("%s cannot be reached (%w): check that its control port is open to this machine", to.Addr, cause)
	case errors.As(err, &u) && u.Indeterminate:
		return fmt.Errorf("%s did not answer (%s): run the same join again", to.Addr, u.Reason)
	case errors.As(err, &u):
		return fmt.Errorf("%s cannot take a new member now: %s; run the same join again later", to.Addr, u.Reason)
	}
	return fmt.Errorf("%s: %w", to.Addr, err)
}

func readJoinReply(t Token, rep *JoinReply) (*JoinResult, error) {
	mesh, err := identity.MeshIDFromBytes(rep.GetMeshId())
	if err != nil || mesh != t.Mesh {
		return nil, errors.New("join: the answer is of another mesh than the token's: make a new token")
	}
	profile, err := ParseProfile(rep.GetProfile())
	if err != nil {
		return nil, fmt.Errorf("join: %w: install the version that the other sites run", err)
	}
	if len(rep.GetGeneration()) != 16 {
		return nil, errors.New("join: the answer is not complete: install the version that the other sites run")
	}
	return &JoinResult{Mesh: mesh, Nodes: rep.GetNodes(), Profile: profile, Generation: [16]byte(rep.GetGeneration()), Level: rep.GetLevel()}, nil
}

// firstError keeps the reason of a failed connection, which gRPC gives as text.
// Once there was a connection, gRPC's later ones are not what a call failed for.
type firstError struct {
	mu  sync.Mutex
	err error
	was bool // there was one
}

func (f *firstError) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil && !f.was {
		f.err = err
	}
}

func (f *firstError) connected() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.was = f.was || f.err == nil
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// tellingCreds keep the error of the TLS handshake.
type tellingCreds struct {
	credentials.TransportCredentials
	why *firstError
}

func (c *tellingCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err == nil {
		c.why.connected()
	} else {
		c.why.set(err)
	}
	return conn, info, err
}

func (c *tellingCreds) Clone() credentials.TransportCredentials { return c }

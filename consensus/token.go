package consensus

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// Token is an invitation to join: where the mesh is, how to know it, and a
// secret that is good for one join. Its String is the secret: show it to its
// owner once and to nobody else.
//
// Form: "portolan1_" and the base64url of a TokenBody and the first four bytes
// of its SHA-256, which catch a copy that lost a piece.
type Token struct {
	Mesh    identity.MeshID
	ID      int64
	Secret  [32]byte
	Site    string
	Expires time.Time
	Nodes   []TokenNode // up to three, in the order in which to try them
}

// TokenNode is a member that a joiner can turn to, known by its key.
type TokenNode struct {
	Addr string // host:port of the control port
	ID   identity.NodeID
}

const (
	tokenPrefix   = "portolan1_"
	tokenFamily   = "portolan"
	tokenSumBytes = 4
	maxTokenChars = 4096
)

// SecretHash is what the mesh keeps of a token's secret.
func (t Token) SecretHash() []byte { h := sha256.Sum256(t.Secret[:]); return h[:] }

// LogValue implements slog.LogValuer: never the secret.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.Int64("id", t.ID), slog.String("site", t.Site))
}

// String gives what people copy, secret and all.
func (t Token) String() string {
	body := &TokenBody{MeshId: t.Mesh[:], Id: t.ID, Secret: t.Secret[:], Site: t.Site, ExpiresUnixS: t.Expires.Unix()}
	for _, n := range t.Nodes {
		body.Addresses = append(body.Addresses, &TokenAddress{Address: n.Addr, NodeId: n.ID[:]})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return "" // only text that is not UTF-8 can do this; CheckSiteName refuses it
	}
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSumBytes]...))
}

// ParseToken reads what String gives, with space around it or line breaks in it.
func ParseToken(s string) (Token, error) {
	s = strings.Join(strings.Fields(s), "")
	if len(s) > maxTokenChars {
		return Token{}, errors.New("this is not a join token: it is too long")
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		if version, _, found := strings.Cut(s, "_"); found && strings.HasPrefix(version, tokenFamily) {
			return Token{}, errors.New("the token was made by a newer version of portolan: install that version here")
		}
		return Token{}, fmt.Errorf("this is not a join token: it should begin with %s; make one with: portolan token create --site NAME", tokenPrefix)
	}
	damaged := errors.New("the token is damaged: copy all of it, from portolan1_ to its end")
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) <= tokenSumBytes {
		return Token{}, damaged
	}
	b, have := b[:len(b)-tokenSumBytes], b[len(b)-tokenSumBytes:]
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:tokenSumBytes], have) {
		return Token{}, damaged
	}
	var body TokenBody
	if err := proto.Unmarshal(b, &body); err != nil {
		return Token{}, damaged
	}
	t := Token{ID: body.GetId(), Site: body.GetSite(), Expires: time.Unix(body.GetExpiresUnixS(), 0).UTC()}
	if t.Mesh, err = identity.MeshIDFromBytes(body.GetMeshId()); err != nil || len(body.GetSecret()) != len(t.Secret) {
		return Token{}, damaged
	}
	copy(t.Secret[:], body.GetSecret())
	if err := state.CheckSiteName(t.Site); err != nil {
		return Token{}, err
	}
	if n := len(body.GetAddresses()); n == 0 || n > maxTokenAddrs {
		return Token{}, damaged
	}
	for _, a := range body.GetAddresses() {
		id, err := identity.NodeIDFromBytes(a.GetNodeId())
		if err != nil {
			return Token{}, damaged
		}
		if _, _, err := net.SplitHostPort(a.GetAddress()); err != nil {
			return Token{}, damaged
		}
		t.Nodes = append(t.Nodes, TokenNode{Addr: a.GetAddress(), ID: id})
	}
	return t, nil
}

// CreateToken makes a token for one join as site, good for ttl. Only its hash is
// kept: the Token is given back once.
func (n *Node) CreateToken(ctx context.Context, actor, site string, ttl time.Duration) (Token, error) {
	if err := state.CheckSiteName(site); err != nil {
		return Token{}, err
	}
	if ttl < minTokenFor || ttl > state.MaxTokenFor {
		return Token{}, &command.Error{Code: command.CodeInvalid, Message: fmt.Sprintf("a token lives for %s to %d days", minTokenFor, int(state.MaxTokenFor.Hours()/24))}
	}
	t := Token{Site: site, Expires: n.cfg.Now().Add(ttl).UTC().Truncate(time.Second)}
	_, _ = rand.Read(t.Secret[:]) // crypto/rand.Read never fails
	res, err := n.Propose(ctx, actor, &command.TokenCreate{Site: site, SecretHash: t.SecretHash(), ExpiresUnixNs: t.Expires.UnixNano()})
	if err != nil {
		return Token{}, err
	}
	return n.Token(res.ID, t.Secret, site, t.Expires), nil
}

// Token makes the text of a token whose hash is in the state: with this mesh's
// id, and where a joiner may turn.
func (n *Node) Token(id int64, secret [32]byte, site string, expires time.Time) Token {
	view := n.state.View()
	return Token{Mesh: view.Mesh().ID, ID: id, Secret: secret, Site: site, Expires: expires.UTC().Truncate(time.Second), Nodes: n.tokenNodes(view)}
}

// tokenNodes gives this node, the leader, the voters and then the others.
func (n *Node) tokenNodes(view *state.View) []TokenNode {
	ids := []identity.NodeID{n.cfg.Identity.ID, n.Status().Leader}
	votes, learners := n.servers()
	ids = append(append(ids, votes...), learners...)
	var out []TokenNode
	done := make(map[identity.NodeID]bool)
	for _, id := range ids {
		m, ok := view.Node(id)
		if !ok || done[id] || len(out) == maxTokenAddrs {
			continue
		}
		done[id] = true
		out = append(out, TokenNode{Addr: controlAddr(m), ID: id})
	}
	return out
}

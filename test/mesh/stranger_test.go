package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/cluster"
)

// ports of a site of `portolan dev`, in their order.
const (
	httpPort = iota
	gossipPort
	controlPort
	dataPort
)

// port is where site i listens.
func (m mesh) port(t testing.TB, i, which int) string {
	t.Helper()
	host, port, err := net.SplitHostPort(m.Sites[i].Host())
	if err != nil {
		t.Fatal(err)
	}
	base, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host, strconv.Itoa(base+which))
}

// closedMesh is a mesh of three sites whose metrics are for its administrator,
// and the key of a site that was removed.
func closedMesh(t *testing.T) (m mesh, removed *identity.Identity) {
	t.Helper()
	dir, base := t.TempDir(), cluster.BasePort(t, 60)
	dev := cluster.Start(t, []string{"PORTOLAN_METRICS_FOR=admins"}, "dev", "--sites", "3", "--data", dir, "--base-port", strconv.Itoa(base))
	m = mesh{cluster.AwaitDev(t, dev, dir, 3, base)}
	gone := m.join(t, 0, "formerly")
	m.Must(t, 1, "site", "remove", "formerly", "--force")
	gone.Stop(t)
	removed, err := identity.Load(m.Sites[3].Data)
	if err != nil {
		t.Fatal(err)
	}
	m.Sites = m.Sites[:3]
	return m, removed
}

// secrets are what a stranger must not learn, as text and as bytes. The node at
// the port itself is no secret: its key is how it is known.
func (m mesh) secrets(t *testing.T, at int) map[string][]byte {
	t.Helper()
	s := map[string][]byte{"the user's name": []byte(m.Username), "a project": []byte("confidential"), "the removed site": []byte("formerly")}
	format, _, err := config.ReadFormat(m.Sites[at].Data)
	if err != nil {
		t.Fatal(err)
	}
	s["the mesh id"], s["the mesh id's bytes"], s["the mesh id's digits"] = []byte(format.Mesh.String()), format.Mesh[:], []byte(hex.EncodeToString(format.Mesh[:]))
	for i, site := range m.Sites {
		s["the name of "+site.Name] = []byte(site.Name)
		id, err := identity.Load(site.Data)
		if err != nil {
			t.Fatal(err)
		}
		if i != at {
			s["the key of "+site.Name], s["the key's bytes of "+site.Name] = []byte(id.ID.String()), id.ID[:]
			for _, which := range []int{gossipPort, controlPort, dataPort} {
				s["an address of "+site.Name] = []byte(m.port(t, i, which))
			}
		}
	}
	var version struct{ Version string }
	if err := json.Unmarshal([]byte(cluster.RunCLI(t, nil, "version", "--json").Stdout), &version); err != nil || version.Version == "" {
		t.Fatalf("portolan version --json: %v %+v", err, version)
	}
	if version.Version != "unknown" && version.Version != "dev" { // words that anything may hold
		s["the version"] = []byte(version.Version)
	}
	s["the compiler's version"] = []byte("go1.")
	return s
}

// learns reports what of the secrets an answer holds.
func learns(t *testing.T, secrets map[string][]byte, what string, answer []byte) {
	t.Helper()
	for name, secret := range secrets {
		if bytes.Contains(answer, secret) {
			t.Errorf("%s tells a stranger %s: %.300q", what, name, answer)
		}
	}
}

// hello is a TLS 1.3 client's first message, made by crypto/tls.
func hello(t testing.TB) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPNRaft}}).Handshake()
	}()
	defer client.Close()
	defer server.Close()
	b := make([]byte, 4<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestStranger_LearnsNothing: whoever comes to a port without a key of the mesh's
// is answered with nothing that he did not know.
func TestStranger_LearnsNothing(t *testing.T) {
	m, removed := closedMesh(t)
	m.Must(t, 0, "project", "create", "confidential")
	secrets := m.secrets(t, 0)

	t.Run("garbage", func(t *testing.T) {
		first := hello(t)
		said := map[string][]byte{
			"nothing": nil, "a byte": {0}, "zeroes": make([]byte, 4096), "ones": bytes.Repeat([]byte{0xff}, 4096),
			"plain HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/2": []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
			"a TLS hello": first, "half a TLS hello": first[:len(first)/2], "SSH": []byte("SSH-2.0-OpenSSH_9.9\r\n"),
			"libp2p": []byte("\x13/multistream/1.0.0\n\x04ls\n"), "libp2p, plain": []byte("\x13/multistream/1.0.0\n\x10/plaintext/2.0.0\n"),
		}
		for _, which := range []int{httpPort, gossipPort, controlPort, dataPort} {
			for name, b := range said {
				c, err := net.Dial("tcp", m.port(t, 0, which))
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(cluster.Patience))
				_, _ = c.Write(b)
				_ = c.(*net.TCPConn).CloseWrite()
				answer, _ := io.ReadAll(c)
				_ = c.Close()
				learns(t, secrets, fmt.Sprintf("port %d, asked with %s,", which, name), answer)
				if which == controlPort && !bytes.Equal(b, first) && len(answer) > 7 {
					t.Errorf("the control port answers %s with %d bytes, more than an alert: %q", name, len(answer), answer)
				}
				if which == gossipPort && len(answer) > 0 {
					t.Errorf("the gossip port answers %s: %q", name, answer)
				}
			}
		}
	})
	t.Run("packets", func(t *testing.T) {
		c, err := net.Dial("udp", m.port(t, 0, gossipPort))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before := m.metric(t, 0, `portolan_gossip_refusals_total{reason="unreadable"}`)
		for i := range 1000 {
			_, _ = c.Write(bytes.Repeat([]byte{byte(i)}, 1+i))
		}
		cluster.Eventually(t, cluster.Patience, "packets are refused and counted", func() error {
			if n := m.metric(t, 0, `portolan_gossip_refusals_total{reason="unreadable"}`) - before; n < 100 {
				return fmt.Errorf("%v of 1000", n)
			}
			return nil
		})
		_ = c.SetReadDeadline(time.Now()) // what was to come has come
		if n, err := c.Read(make([]byte, 1500)); err == nil {
			t.Errorf("%d bytes in answer to a packet", n)
		}
	})
	t.Run("the certificate", func(t *testing.T) {
		c, err := tls.Dial("tcp", m.port(t, 0, controlPort), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPNGRPC}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, cert := range c.ConnectionState().PeerCertificates {
			learns(t, secrets, "the certificate", cert.Raw)
		}
		_ = c.SetDeadline(time.Now().Add(cluster.Patience))
		answer, err := io.ReadAll(c)
		if err == nil {
			t.Fatal("without a certificate the connection ends in order")
		}
		learns(t, secrets, "the end of the handshake", append(answer, err.Error()...))
	})
	stranger, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at, err := identity.Load(m.Sites[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]*identity.Identity{"a key of nobody's": stranger, "the key of a removed node": removed} {
		t.Run("raft with "+name, func(t *testing.T) {
			c, err := wire.DialRaft(t.Context(), m.port(t, 0, controlPort), at.ID, id, everybody{})
			var answer []byte
			if err == nil { // TLS 1.3: the client's side of the handshake ends first
				_ = c.SetDeadline(time.Now().Add(cluster.Patience))
				_, _ = c.Write([]byte{0, 2, 0x18, 1})
				answer, err = io.ReadAll(c)
				_ = c.Close()
			}
			if err == nil || len(answer) > 0 {
				t.Errorf("answered %q, %v", answer, err)
			}
		})
		t.Run("calls with "+name, func(t *testing.T) {
			know := secrets
			if id == removed {
				// He is told that he was removed, and what he knows anyway: his own site.
				know = maps.Clone(secrets)
				delete(know, "the removed site")
				delete(know, "the user's name") // who removed him
			}
			m.calls(t, know, id, at.ID)
		})
	}
	t.Run("the registry", func(t *testing.T) {
		// What answers everybody: the logs of a probe, and what Harbor's clients ask
		// before they log in: of a public project they see the owner.
		secrets := maps.Clone(secrets)
		delete(secrets, "the user's name")
		for _, path := range []string{"/", "/v2/", "/v2/_catalog", "/v2/confidential/app/tags/list", "/v2/confidential/app/manifests/1", "/v2/confidential/app/blobs/uploads/",
			"/metrics", "/healthz", "/readyz", "/api/version", "/api/v2.0/systeminfo", "/api/v2.0/projects", "/api/v2.0/projects/confidential", "/api/v2.0/users",
			"/api/v2.0/users/current", "/api/v2.0/health", "/api/v2.0/ping", "/api/mesh/v1/status", "/api/mesh/v1/sites", "/api/mesh/v1/tokens", "/api/mesh/v1/rules",
			"/api/mesh/v1/", "/debug/pprof/", "/debug/vars", "/service/token?service=x&scope=repository:confidential/app:pull", "/nothing"} {
			for who, login := range map[string]string{"": "", "with a wrong password ": "wrong"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.Sites[0].URL+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if login != "" {
					req.SetBasicAuth("nobody", login)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				var answer bytes.Buffer
				_ = resp.Header.Write(&answer)
				_, _ = io.Copy(&answer, resp.Body)
				resp.Body.Close()
				text := answer.Bytes()
				if strings.Contains(path, "confidential") { // who asks by name has it back
					text = bytes.ReplaceAll(text, []byte("confidential"), nil)
				}
				learns(t, secrets, "GET "+who+path, text)
			}
		}
	})
}

type everybody struct{}

func (everybody) IsMember(identity.NodeID) bool { return true }

// calls makes every call of the control port with somebody's key, and some that
// there are not.
func (m mesh) calls(t *testing.T, secrets map[string][]byte, id *identity.Identity, at identity.NodeID) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+m.port(t, 0, controlPort), grpc.WithTransportCredentials(wire.Credentials(id, at)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
	defer cancel()
	c := consensus.NewControlClient(conn)
	token := &consensus.JoinRequest{MeshId: make([]byte, 16), TokenId: 1, Secret: make([]byte, 32), Site: "ber",
		Node: consensus.Record(id, &command.Node{Host: "127.0.0.1", ControlPort: 1}), NowUnixNs: time.Now().UnixNano()}
	forwarded := &consensus.JoinRequest{MeshId: token.GetMeshId(), Node: token.GetNode(), Forwarded: true}
	for name, call := range map[string]func() error{
		"Ping": func() error { _, err := c.Ping(ctx, &consensus.PingRequest{Trips: true}); return err },
		"Propose": func() error {
			_, err := c.Propose(ctx, &consensus.ProposeRequest{Envelope: &command.Envelope{Type: 1}})
			return err
		},
		"Barrier":           func() error { _, err := c.Barrier(ctx, &consensus.BarrierRequest{}); return err },
		"Return":            func() error { _, err := c.Return(ctx, &consensus.ReturnRequest{}); return err },
		"Join":              func() error { _, err := c.Join(ctx, token); return err },
		"Join, forwarded":   func() error { _, err := c.Join(ctx, forwarded); return err },
		"an unknown method": func() error { return conn.Invoke(ctx, "/portolan.consensus.v1.Control/Nothing", token, token) },
		"reflection": func() error {
			return conn.Invoke(ctx, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", token, token)
		},
		"Committed": func() error {
			s, err := c.Committed(ctx)
			if err == nil {
				_ = s.Send(&consensus.CommitNotice{Index: 1 << 40, Term: 1 << 40})
				_, err = s.CloseAndRecv()
			}
			return err
		},
	} {
		err := call()
		if err == nil {
			t.Errorf("%s was answered", name)
			continue
		}
		st, _ := status.FromError(err)
		answer := []byte(err.Error())
		for _, d := range st.Details() {
			answer = fmt.Appendf(answer, " %v", d)
		}
		learns(t, secrets, name, answer)
	}
}

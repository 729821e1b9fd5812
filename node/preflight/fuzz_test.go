package preflight

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/registryapi/apitest"
	"github.com/portolan/portolan/test/ports"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// script is a stream on which the other side says what it will whatever it hears.
type script struct {
	says  func(heard []byte) []byte // once, at the first read
	in    *bytes.Reader
	head  []byte // of what was written
	n     int64
	ended bool // by this side, well
	reset bool
}

func (s *script) Read(p []byte) (int, error) {
	if s.in == nil {
		s.in = bytes.NewReader(s.says(s.head))
	}
	return s.in.Read(p)
}

func (s *script) Write(p []byte) (int, error) {
	s.head = append(s.head, p[:min(len(p), max(0, 4+maxMessage-len(s.head)))]...)
	s.n += int64(len(p))
	return len(p), nil
}

func (s *script) SetIdle(time.Duration)           {}
func (s *script) SetReadDeadline(time.Time) error { return nil }
func (s *script) CloseWrite() error               { s.ended = true; return nil }
func (s *script) Close() error                    { s.ended = true; return nil }
func (s *script) Reset() error                    { s.reset = true; return nil }

// far is the data plane, gossip, budgets and store of a node whose counterpart may
// say anything.
type far struct {
	open, bulk func(heard []byte) []byte

	mu     sync.Mutex
	dialed []string
	probes int
}

func (f *far) Handle(string, plane.Handler) {}

func (f *far) Open(context.Context, identity.NodeID, string) (plane.Stream, error) {
	return &script{says: f.open}, nil
}

func (f *far) OpenBulk(context.Context, identity.NodeID, string) (plane.Stream, error) {
	return &script{says: f.bulk}, nil
}

func (*far) DialAfresh(context.Context, identity.NodeID) error { return errors.New("refused") }
func (*far) Alive(identity.NodeID) bool                        { return false }
func (*far) IsMember(identity.NodeID) bool                     { return true }

func (f *far) Exchange(_ context.Context, _ identity.NodeID, addr string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialed = append(f.dialed, addr)
	return nil
}

func (f *far) SendProbe(ctx context.Context, to identity.NodeID, addr string, _ gossip.Token, _ int) error {
	return f.Exchange(ctx, to, addr)
}

func (*far) Heard(context.Context, gossip.Token) bool { return false }

func (*far) Send(_ context.Context, _ identity.NodeID, _ budget.Class, n int) (int, error) {
	return n, nil
}

func (*far) Receive(_ context.Context, _ budget.Class, n int) (int, error) { return n, nil }

func (*far) Room(int64) (store.Room, error) {
	return store.Room{Free: 1 << 40, Total: 1 << 41, Left: 1 << 39}, nil
}

func (f *far) Probe(context.Context) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probes++
	return time.Millisecond, nil
}

// pair is a mesh of fra, whose Checker is tried, and nyc, where nobody listens.
func pair(f *testing.F) (m *apitest.Mesh, nyc state.Node) {
	f.Helper()
	m = apitest.New(f, "fra")
	id := m.AddSite("nyc", ports.Free(f))
	nyc, ok := m.State.View().Node(id)
	if !ok {
		f.Fatal("nyc is not there")
	}
	return m, nyc
}

// zeros are so many bytes of a burst, of a few pieces at most: nobody looks at them.
func zeros(n uint32) func([]byte) []byte {
	return func([]byte) []byte { return make([]byte, n%(4*burstPiece)) }
}

func checker(m *apitest.Mesh, parts *far) *Checker {
	c := New(Config{Identity: m.Identity, Members: parts, View: m.State.View, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	c.Start(Parts{Gossip: parts, Host: parts, Pacer: parts, Store: parts})
	return c
}

func framed(f *testing.F, m proto.Message) []byte {
	f.Helper()
	var b bytes.Buffer
	if err := peer.WriteMsg(&b, m, maxMessage); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// FuzzServe gives a node arbitrary questions of a member, which is known or not
// yet, and a burst of any length where it takes one: never a panic, an answer or a
// reset, never more bytes than a check sends, one look at the store at most, and
// nothing is sent to but what the control state says.
func FuzzServe(f *testing.F) {
	m, nyc := pair(f)
	ask := func(q *Question) []byte {
		return framed(f, &StreamRequest{Kind: &StreamRequest_Question{Question: q}})
	}
	burst := func(b *Burst) []byte { return framed(f, &StreamRequest{Kind: &StreamRequest_Burst{Burst: b}}) }
	token := make([]byte, len(gossip.Token{}))
	f.Add(ask(&Question{}), uint32(0), true)
	f.Add(ask(&Question{PassedOn: true, Origin: []byte{1}, Answerer: []byte("another")}), uint32(0), true)
	f.Add(ask(&Question{Look: &Look{Sent: [][]byte{token, token}, Send: [][]byte{token, token}}}), uint32(0), true)
	f.Add(ask(&Question{Look: &Look{Sent: [][]byte{token, token, token}}}), uint32(0), true)
	f.Add(ask(&Question{Look: &Look{Send: [][]byte{{1}}}}), uint32(0), true)
	f.Add(ask(&Question{Look: &Look{}}), uint32(0), false)
	f.Add(burst(&Burst{ToMe: true, Bytes: 1 << 62, Milliseconds: 1 << 62}), uint32(0), true)
	f.Add(burst(&Burst{ToMe: true, Bytes: -1, Milliseconds: -1}), uint32(0), true)
	f.Add(burst(&Burst{}), uint32(3*burstPiece), true)
	f.Add(burst(&Burst{}), uint32(1), true)
	f.Add([]byte{255, 255, 255, 255, 1}, uint32(0), true)
	f.Add([]byte{0, 0, 0, 0}, uint32(0), true)
	f.Fuzz(func(t *testing.T, in []byte, bulk uint32, known bool) {
		parts := &far{bulk: zeros(bulk)}
		c := checker(m, parts)
		from := nyc.ID
		if !known {
			from[0] ^= 1
		}
		st := &script{in: bytes.NewReader(in)}
		c.serveStream(t.Context(), from, st)
		if len(c.answers) != 0 {
			t.Fatal("a place among those that are answered is not given back")
		}
		asked := new(StreamRequest)
		_ = peer.ReadMsg(bytes.NewReader(in), asked, maxMessage)
		switch {
		case st.n > maxBurst:
			t.Fatalf("%d bytes for one question", st.n)
		case !asked.GetBurst().GetToMe() && st.n > 4+maxMessage:
			t.Fatalf("an answer of %d bytes", st.n)
		case asked.GetBurst() == nil && !st.reset && peer.ReadMsg(bytes.NewReader(st.head), new(Answer), maxMessage) != nil:
			t.Fatal("neither an answer nor a reset")
		case !known && asked.GetQuestion().GetLook() != nil && !st.reset:
			t.Fatal("a node that the control state does not name has an answer")
		}
		at := net.JoinHostPort(nyc.Host, strconv.Itoa(nyc.GossipPort))
		for _, addr := range parts.dialed {
			if addr != at {
				t.Fatalf("something is sent to %s, where no node of the mesh is", addr)
			}
		}
		if len(parts.dialed) > 0 && !known || parts.probes > 1 {
			t.Fatalf("%d packets and exchanges, %d looks at the store", len(parts.dialed), parts.probes)
		}
	})
}

// FuzzCheck has the checked node say anything to each question of a check: never a
// panic; a report of lines that an API and a terminal can show, none of them well
// that rests on an answer which did not come.
func FuzzCheck(f *testing.F) {
	m, nyc := pair(f)
	whole := &Answer{
		ReceivedUnixNs: 1, SentUnixNs: 2, Heard: []bool{true, false},
		Room: &Room{Free: -1, Total: 1, Left: -1 << 63, Bucket: true, Error: "no\x1b[2Jspace"},
		Kept: &Kept{Error: strings.Repeat("é", maxText), Fault: 77},
	}
	for port := range portPackets + 2 {
		whole.Findings = append(whole.Findings, &Finding{Port: port, Address: strings.Repeat("a", 2*maxText), Error: "line\nbreak", TookNs: -1 << 63})
	}
	f.Add(framed(f, whole), framed(f, &BurstEnd{Bytes: 1 << 62, TookNs: 1}), uint32(3*burstPiece))
	f.Add(framed(f, &Answer{Heard: []bool{true, true}, Findings: []*Finding{{Port: portData, OtherKey: true}}, Kept: &Kept{}}), framed(f, &BurstEnd{Bytes: -5, TookNs: -1}), uint32(1))
	f.Add(framed(f, &Answer{Heard: make([]bool, 1000)}), []byte{0, 0, 0, 0}, uint32(0))
	f.Add([]byte{255, 255, 255, 255}, []byte{0, 0, 0, 9}, uint32(0))
	f.Fuzz(func(t *testing.T, answer, end []byte, bulk uint32) {
		parts := &far{bulk: zeros(bulk)}
		parts.open = func(heard []byte) []byte {
			q := new(StreamRequest)
			if err := peer.ReadMsg(bytes.NewReader(heard), q, maxMessage); err != nil {
				t.Fatalf("what is asked is no question: %v", err)
			}
			if q.GetBurst() != nil {
				return end
			}
			return answer
		}
		c := checker(m, parts)
		k := &check{c: c, p: c.parts, view: m.State.View(), to: nyc}
		k.self, _ = k.view.Node(m.Identity.ID)
		k.ask(t.Context(), k.ways()[1:]) // over the data plane; nothing is dialed
		k.out, k.in = c.burstTo(t.Context(), k.p, nyc.ID), c.burstFrom(t.Context(), k.p, nyc.ID)
		r := k.report()
		a := new(Answer)
		answered := peer.ReadMsg(bytes.NewReader(answer), a, maxMessage) == nil && len(a.GetHeard()) == maxTokens
		for _, l := range r.Lines {
			rests := l.From == "nyc" && l.Test != TestThroughput || l.Test == TestGossipUDP || l.Test == TestAnswer || l.Test == TestSpace || l.Test == TestStore
			if rests && !answered && (l.Result == OK || l.Result == Warning) {
				t.Errorf("nobody answered, and: %+v", l)
			}
			if l.Test == TestStore && l.Result == OK && (a.GetKept() == nil || a.GetKept().GetError() != "") {
				t.Errorf("the store keeps nothing, and: %+v", l)
			}
			text := l.Detail + l.Advice
			if len(text) > 4*maxText || strings.ContainsFunc(text, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }) {
				t.Errorf("%d bytes for people: %q", len(text), text)
			}
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}

package gossip

import (
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
)

// FuzzMeta: what a member, or whoever has its key, says of itself and sends. It
// is taken or refused; what was refused leaves nothing, and queues stay bounded.
func FuzzMeta(f *testing.F) {
	id := identity.NodeID{1}
	meta, err := proto.Marshal(&Meta{Site: "fra", Level: 3, Draining: true})
	if err != nil {
		f.Fatal(err)
	}
	hint, err := proto.Marshal(&Hint{From: id[:], Kind: 7, Payload: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	bye, err := proto.Marshal(&Hint{From: id[:], Kind: kindGoodbye})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(id.String(), meta, hint)
	f.Add(id.String(), meta, bye)
	f.Add("somebody", []byte{0xff}, []byte{0xff, 1})
	f.Fuzz(func(t *testing.T, name string, meta, msg []byte) {
		if len(meta) > memberlist.MetaMaxSize || len(msg) > 1400 {
			return // memberlist's bounds
		}
		m := &Mesh{cfg: Config{Self: identity.NodeID{9}, Logger: slog.New(slog.DiscardHandler)}, hints: make(chan *Hint, hintQueue),
			changed: make(chan struct{}, 1), events: make(chan event, eventQueue), members: make(map[identity.NodeID]*member)}
		m.initMetrics()
		d := (*delegate)(m)
		n := &memberlist.Node{Name: name, Addr: []byte{127, 0, 0, 1}, Port: 7946, Meta: meta}
		if err := d.NotifyAlive(n); err != nil {
			// memberlist asks before it believes.
			if len(m.members) != 0 {
				t.Fatal("a refused node is known")
			}
			return
		}
		for range eventQueue + 2 {
			d.NotifyJoin(n)
			d.NotifyMsg(msg)
			d.NotifyPingComplete(n, time.Millisecond, nil)
			d.NotifyUpdate(n)
			d.NotifyConflict(n, n)
			d.NotifyLeave(n)
		}
		want, err := identity.ParseNodeID(name)
		if err != nil {
			t.Fatalf("%q was taken for a node: %v", name, err)
		}
		if x := m.members[want]; len(m.members) != 1 || x == nil || x.Alive || len(x.rtts) > rttSamples {
			t.Fatalf("after it left: %+v", m.members)
		}
		if len(m.hints) > hintQueue || len(m.events) > eventQueue {
			t.Fatalf("%d hints and %d events wait", len(m.hints), len(m.events))
		}
	})
}

package consensus

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestRaft212_RefusedSnapshot_IsReadToItsEnd: what follows it on the connection
// is not taken for a part of it.
func TestRaft212_RefusedSnapshot_IsReadToItsEnd(t *testing.T) {
	g := &guard{node: &Node{}}
	data := strings.NewReader("a snapshot")
	answered := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: &raft.InstallSnapshotRequest{Term: 9}, Reader: data, RespChan: answered}
	if g.admits(rpc) {
		t.Fatal("a node that takes no part takes a snapshot")
	}
	refuseRPC(rpc)
	if resp := <-answered; resp.Error == nil || data.Len() != 0 {
		t.Fatalf("answered %v with %d bytes left", resp.Error, data.Len())
	}
}

// TestGuard_Learns: who comes back takes nothing of a leader before the one that
// took its vote away, and gives no votes.
func TestGuard_Learns_FromThatLeaderOn(t *testing.T) {
	g := &guard{node: &Node{}}
	g.set(learns, 5)
	for name, test := range map[string]struct {
		command any
		want    bool
	}{
		"entries of an older leader":      {&raft.AppendEntriesRequest{Term: 4}, false},
		"entries of that leader":          {&raft.AppendEntriesRequest{Term: 5}, true},
		"entries of a later one":          {&raft.AppendEntriesRequest{Term: 6}, true},
		"a snapshot of an older one":      {&raft.InstallSnapshotRequest{Term: 4}, false},
		"a snapshot of that leader":       {&raft.InstallSnapshotRequest{Term: 5}, true},
		"a vote is asked for":             {&raft.RequestVoteRequest{Term: 9}, false},
		"a pre-vote is asked for":         {&raft.RequestPreVoteRequest{Term: 9}, false},
		"it is asked to stand (raft#476)": {&raft.TimeoutNowRequest{}, false},
	} {
		if got := g.admits(raft.RPC{Command: test.command}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	g.shutDoor()
	g.set(takesPart, 0)
	if g.admits(raft.RPC{Command: &raft.AppendEntriesRequest{Term: 9}}) {
		t.Error("a door that was shut for ever opened")
	}
}

func FuzzGreeting(f *testing.F) {
	f.Add([]byte{0, 2, 0x18, 1})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := strings.NewReader(string(b))
		var g Greeting
		if err := readGreeting(r, &g); err == nil && len(b)-r.Len() != 2+int(b[0])<<8+int(b[1]) {
			t.Fatalf("took %d bytes", len(b)-r.Len())
		}
	})
}

func TestKin(t *testing.T) {
	a, b, c := []byte("a"), []byte("b"), []byte("c")
	for name, test := range map[string]struct {
		own   []byte
		ended [][]byte
		other *Greeting
		want  kinship
	}{
		"one generation":             {a, nil, &Greeting{Generation: a}, same},
		"this one has no log":        {nil, nil, &Greeting{Generation: a}, same},
		"the other one has none":     {a, nil, &Greeting{}, same},
		"recovered there":            {a, nil, &Greeting{Generation: b, Ended: [][]byte{a}}, older},
		"recovered there twice":      {a, nil, &Greeting{Generation: c, Ended: [][]byte{a, b}}, older},
		"recovered here":             {b, [][]byte{a}, &Greeting{Generation: a}, newer},
		"recovered at both":          {b, [][]byte{a}, &Greeting{Generation: c, Ended: [][]byte{a}}, strange},
		"nothing is known of either": {a, nil, &Greeting{Generation: b}, strange},
	} {
		if got := kin(test.own, test.ended, test.other); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

// TestGreeting_Stranger: a raft connection that does not greet gets nowhere, and
// one that greets with nonsense neither.
func TestGreeting_Garbage_EndsTheConnection(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	for name, b := range map[string][]byte{"nothing": nil, "too long": {0xff, 0xff}, "no message": {0, 2, 0xff, 0xff}} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write(b)
			_ = theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := a.node.greet(ctx, ours, m.site("x"+name[:2]).id.ID, false); err == nil {
			t.Errorf("%s: greeted", name)
		}
		cancel()
		_ = ours.Close()
	}
}

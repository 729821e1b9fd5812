package consensus

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
)

func testFSM(t *testing.T) *fsm {
	t.Helper()
	m, err := openMarker(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.close() })
	return newFSM(state.New(), m)
}

func logOf(t *testing.T, index uint64, env *command.Envelope) *raft.Log {
	t.Helper()
	b, err := proto.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: b}
}

func TestFSM_UnknownCommand_StopsBeforeApplying(t *testing.T) {
	for name, env := range map[string]*command.Envelope{
		"type":  {Type: 999, MinLevel: 1, RequestId: random(16)},
		"level": {Type: command.Type_TYPE_SET_LEVEL, MinLevel: command.Level + 1, RequestId: random(16)},
	} {
		f := testFSM(t)
		before := f.state.View()
		a := f.Apply(logOf(t, 5, env)).(applied)
		var unsupported *state.UnsupportedError
		if !errors.As(a.err, &unsupported) || !errors.Is(f.haltedBy(), a.err) || !strings.Contains(a.err.Error(), "start a newer version") {
			t.Fatalf("%s: %v", name, a.err)
		}
		if f.state.View() != before {
			t.Fatalf("%s: the state changed", name)
		}
		// Nothing is applied after it, and no snapshot hides it.
		good, err := command.New("system", time.Now(), &command.SetLevel{Level: 1})
		if err != nil {
			t.Fatal(err)
		}
		if a := f.Apply(logOf(t, 6, good)).(applied); a.err == nil || f.state.View() != before {
			t.Fatalf("%s: went on after the halt", name)
		}
		if _, err := f.Snapshot(); err == nil {
			t.Fatalf("%s: took a snapshot after the halt", name)
		}
		if i, _ := f.mark.get(); i != 0 {
			t.Fatalf("%s: the marker moved to %d", name, i)
		}
	}
}

func TestFSM_IgnorableCommand_IsSkipped(t *testing.T) {
	f := testFSM(t)
	skip := command.Ignorable | 999
	a := f.Apply(logOf(t, 5, &command.Envelope{Type: command.Type(int32(skip)), MinLevel: 99, RequestId: random(16)})).(applied)
	if a.err != nil || f.haltedBy() != nil || f.state.View().Index() != 5 {
		t.Fatalf("%+v, halted: %v, index %d", a, f.haltedBy(), f.state.View().Index())
	}
}

// TestFSM_Batch_StopsAtTheUnknown: what comes before it is applied and remembered,
// what comes behind it is not. Configurations and refusals are in nobody's way.
func TestFSM_Batch_StopsAtTheUnknown(t *testing.T) {
	f := testFSM(t)
	refused, err := command.New("system", time.Now(), &command.SetLevel{Level: 1}) // there is no mesh
	if err != nil {
		t.Fatal(err)
	}
	changed := f.state.Changed()
	out := f.ApplyBatch([]*raft.Log{
		logOf(t, 5, refused),
		{Index: 6, Term: 1, Type: raft.LogConfiguration},
		logOf(t, 7, refused),
		logOf(t, 8, &command.Envelope{Type: 999, MinLevel: 1, RequestId: random(16)}),
		logOf(t, 9, refused),
	})
	if len(out) != 5 || out[1] != nil {
		t.Fatalf("answers: %+v", out)
	}
	for i, want := range map[int]uint64{0: 5, 2: 7} {
		a := out[i].(applied)
		var refusal *command.Error
		if !errors.As(a.err, &refusal) || a.result.Index != want || a.term != 1 {
			t.Errorf("entry %d: %+v", i, a)
		}
	}
	var unsupported *state.UnsupportedError
	for _, i := range []int{3, 4} {
		if a := out[i].(applied); !errors.As(a.err, &unsupported) || a.term != 0 {
			t.Errorf("entry %d: %+v", i, a)
		}
	}
	if got := f.state.View().Index(); got != 7 {
		t.Errorf("the state is at %d", got)
	}
	if got, _ := f.mark.get(); got != 7 {
		t.Errorf("the marker is at %d", got)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
}

func TestFSM_NewerSnapshot_IsRefused(t *testing.T) {
	f := testFSM(t)
	var b bytes.Buffer
	if _, err := protodelim.MarshalTo(&b, &command.SnapshotHeader{Format: 99, Level: 1, Index: 7}); err != nil {
		t.Fatal(err)
	}
	err := f.Restore(io.NopCloser(&b))
	if err == nil || f.haltedBy() == nil || !strings.Contains(err.Error(), "snapshot of format 99") {
		t.Fatalf("%v, halted: %v", err, f.haltedBy())
	}
}

// TestUnknownCommand_StopsTheNode: the whole node ends with that message.
func TestUnknownCommand_StopsTheNode(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	f := a.node.raft.Apply(logOf(t, 0, &command.Envelope{Type: 999, MinLevel: 1, RequestId: random(16)}).Data, LAN.Election)
	_ = f.Error()
	select {
	case <-a.node.fsm.halted:
	case <-time.After(10 * time.Second):
		t.Fatal("the node does not stop")
	}
	if err := a.shutdownErr(); err == nil || !strings.Contains(err.Error(), "start a newer version") {
		t.Fatalf("the node stopped with %v", err)
	}
}

func TestMarker_DamageIsNotBelieved(t *testing.T) {
	m, err := openMarker(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	m.set(7, 3)
	if i, term := m.get(); i != 7 || term != 3 {
		t.Fatalf("got %d, %d", i, term)
	}
	if _, err := m.f.WriteAt([]byte{0xff}, 12); err != nil {
		t.Fatal(err)
	}
	if i, _ := m.get(); i != 0 {
		t.Fatalf("a damaged marker says %d", i)
	}
}

// TestReplay_OtherTerm: a log whose entry at the marker has another term is not
// the one that was applied; nothing of it may be replayed.
func TestReplay_OtherTerm(t *testing.T) {
	for _, c := range []struct {
		term uint64
		want uint64
	}{{1, 2}, {2, 0}} {
		f := testFSM(t)
		store := raft.NewInmemStore()
		env, err := command.New("system", time.Now(), &command.SetLevel{Level: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.StoreLogs([]*raft.Log{logOf(t, 1, env), logOf(t, 2, env), logOf(t, 3, env)}); err != nil {
			t.Fatal(err)
		}
		f.mark.set(2, c.term)
		if err := replay(f, store, raft.NewInmemSnapshotStore(), f.mark); err != nil {
			t.Fatal(err)
		}
		if got := f.state.View().Index(); got != c.want {
			t.Errorf("term %d: replayed to %d, want %d", c.term, got, c.want)
		}
	}
}

func TestStatus_ErrorsCrossTheWire(t *testing.T) {
	u := &command.Unavailable{Reason: "r", Sites: []string{"fra"}, RetryAfter: time.Second, Indeterminate: true}
	var gotU *command.Unavailable
	if err := fromStatus(toStatus(u)); !errors.As(err, &gotU) || gotU.Reason != "r" || gotU.Sites[0] != "fra" || gotU.RetryAfter != time.Second || !gotU.Indeterminate {
		t.Errorf("%+v", gotU)
	}
	e := &command.Error{Code: command.CodeConflict, Message: "m"}
	if err := fromStatus(toStatus(e)); !errors.Is(err, e) {
		t.Errorf("%v", err)
	}
	var d *decided
	if err := fromStatus(toStatus(&decided{refusal: e, index: 9})); !errors.As(err, &d) || d.index != 9 || !errors.Is(err, e) {
		t.Errorf("%v", err)
	}
	var other *notLeader
	if err := fromStatus(toStatus(&notLeader{})); !errors.As(err, &other) {
		t.Errorf("%v", err)
	}
	if err := fromStatus(toStatus(errors.New("x"))); !errors.As(err, &gotU) || !gotU.Indeterminate {
		t.Errorf("what is not known must count as perhaps applied: %v", err)
	}
}

func TestWatchTransfer_ErrorClasses(t *testing.T) {
	n := &Node{cfg: Config{Profile: LAN}, fatal: make(chan error, 1)}
	var other *notLeader
	for _, err := range []error{raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress} {
		if got := n.watchTransfer(err); !errors.As(got, &other) {
			t.Errorf("%v was not applied: %v", err, got)
		}
	}
	var u *command.Unavailable
	for _, err := range []error{raft.ErrLeadershipLost, raft.ErrAbortedByRestore, raft.ErrRaftShutdown, errors.New("new")} {
		if got := n.watchTransfer(err); !errors.As(got, &u) || !u.Indeterminate {
			t.Errorf("%v may have been applied: %v", err, got)
		}
	}
}

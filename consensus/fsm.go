package consensus

import (
	"errors"
	"io"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
)

// applied is what the state machine answers to raft.
type applied struct {
	result command.Result
	term   uint64 // of the entry
	err    error
	tell   *command.Envelope // what the log tells of it; nil: nothing
}

// fsm joins the state to raft. raft calls ApplyBatch, Snapshot and Restore from
// one goroutine.
type fsm struct {
	state *state.State
	mark  *marker
	log   *slog.Logger // nil: nothing is told

	once   sync.Once
	halted chan struct{} // closed when the node must stop
	why    error         // set before halted is closed
}

func newFSM(s *state.State, m *marker) *fsm {
	return &fsm{state: s, mark: m, halted: make(chan struct{})}
}

// halt stops all further applying: invariant C4.
func (f *fsm) halt(err error) {
	f.once.Do(func() { f.why = err; close(f.halted) })
}

// haltedBy gives the reason for a halt, or nil.
func (f *fsm) haltedBy() error {
	select {
	case <-f.halted:
		return f.why
	default:
		return nil
	}
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM: entries that were committed together
// become visible together, and the marker is written once for all of them.
// Configurations come along; they are raft's own.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	before := f.state.View()
	out, last := f.applyAll(logs)
	for _, o := range out {
		if a, ok := o.(applied); ok && a.tell != nil && f.log != nil {
			tell(f.log, before, a.tell)
		}
	}
	if last != nil {
		f.mark.set(last.Index, last.Term)
	}
	return out
}

// applyAll gives the answers, and the last entry that was applied; nil: none.
func (f *fsm) applyAll(logs []*raft.Log) (out []any, last *raft.Log) {
	out = make([]any, len(logs))
	batch := f.state.Batch()
	defer batch.Publish()
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		a := f.apply(batch, l)
		if a.term != 0 {
			last = l
		}
		out[i] = a
	}
	return out, last
}

// apply gives the answer to one entry. Its term is zero if nothing was applied.
func (f *fsm) apply(batch *state.Batch, l *raft.Log) applied {
	if err := f.haltedBy(); err != nil {
		return applied{err: err}
	}
	if l.Index <= batch.Index() {
		return applied{} // replayed at start already: invariant C6
	}
	var env command.Envelope
	if err := proto.Unmarshal(l.Data, &env); err != nil {
		err = &state.UnsupportedError{Index: l.Index, Reason: "an entry that is no command envelope"}
		f.halt(err)
		return applied{err: err}
	}
	res, err := batch.Apply(l.Index, &env)
	var refusal *command.Error
	if err != nil && !errors.As(err, &refusal) {
		f.halt(err)
		return applied{err: err}
	}
	a := applied{result: res, term: l.Term, err: err}
	if err == nil && isTold(env.GetType()) {
		a.tell = &env
	}
	return a
}

// Snapshot implements raft.FSM. It only takes a pointer.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.haltedBy(); err != nil {
		return nil, err
	}
	return snapshot{f.state.View()}, nil
}

// Restore implements raft.FSM: all or nothing (rqlite#2759).
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	if err := f.haltedBy(); err != nil {
		return err
	}
	err := f.state.Restore(r)
	var unsupported *state.UnsupportedError
	if errors.As(err, &unsupported) {
		f.halt(err)
	}
	return err
}

type snapshot struct{ view *state.View }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.view.Snapshot(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

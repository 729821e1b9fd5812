package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
)

// position is an entry in a raft log. The last one of a log never goes back: an
// entry that takes the place of another has a higher term.
type position struct{ term, index uint64 }

// after orders positions as votes do.
func (p position) after(o position) bool {
	return p.term > o.term || (p.term == o.term && p.index > o.index)
}

func (p position) proto() *Position { return &Position{Term: p.term, Index: p.index} }

func (p *Position) position() position { return position{p.GetTerm(), p.GetIndex()} }

func (p position) String() string { return fmt.Sprintf("term %d, entry %d", p.term, p.index) }

// position gives this node's last entry, in the log or in a snapshot.
func (n *Node) position() position {
	s := n.raft.Stats()
	at := func(term, index string) (p position) {
		p.term, _ = strconv.ParseUint(s[term], 10, 64)
		p.index, _ = strconv.ParseUint(s[index], 10, 64)
		return p
	}
	log, snapshot := at("last_log_term", "last_log_index"), at("last_snapshot_term", "last_snapshot_index")
	if snapshot.after(log) {
		return snapshot
	}
	return log
}

const (
	memoryFile     = "acknowledged"
	maxMemoryBytes = 1 << 20
	// rememberEvery is how old the file may be: an edit costs an fsync at each
	// voter anyway, and this one comes once a second at most.
	rememberEvery = time.Second
)

// memory is what other nodes are known to have had in their logs: a leader what
// its followers acknowledged, a follower what its leaders had before they sent
// it, and what its leader tells it of the other voters. A node that comes with
// less has lost what it promised to keep, by a disk that was put back: invariant
// C21.
//
// It is in the file `acknowledged`, a second late at most while the node runs.
// It belongs to a generation; after a recovery nothing of it holds.
type memory struct {
	path string
	gen  func() []byte

	mu    sync.Mutex // leaf lock
	at    map[identity.NodeID]position
	dirty bool
}

// openMemory reads what was known when the node stopped. A file that is damaged
// or of another generation says nothing.
func openMemory(dir string, generation func() []byte) (*memory, error) {
	m := &memory{path: filepath.Join(dir, memoryFile), gen: generation, at: make(map[identity.NodeID]position)}
	var kept Memory
	if _, err := readMessage(m.path, &kept); err != nil {
		return nil, err
	}
	if string(kept.GetGeneration()) == string(generation()) {
		m.take(kept.GetAcknowledged())
	}
	m.dirty = false
	return m, nil
}

// readMessage reads a small file that writeFile wrote. One that does not parse
// is as good as none.
func readMessage(path string, m proto.Message) (found bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("consensus: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMemoryBytes))
	if err != nil {
		return false, fmt.Errorf("consensus: read %s: %w", path, err)
	}
	if proto.Unmarshal(b, m) != nil {
		proto.Reset(m)
	}
	return true, nil
}

// note remembers that a node had p in its log, durably.
func (m *memory) note(id identity.NodeID, p position) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.after(m.at[id]) && len(m.at) < maxPeekedNodes {
		m.at[id], m.dirty = p, true
	}
}

func (m *memory) take(list []*Acknowledged) {
	for _, a := range list {
		if id, err := identity.NodeIDFromBytes(a.GetNodeId()); err == nil {
			m.note(id, a.GetLast().position())
		}
	}
}

// of gives what a node had at least.
func (m *memory) of(id identity.NodeID) position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at[id]
}

// list gives it for these nodes.
func (m *memory) list(of []identity.NodeID) []*Acknowledged {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Acknowledged
	for _, id := range of {
		if p, ok := m.at[id]; ok {
			out = append(out, &Acknowledged{NodeId: id[:], Last: p.proto()})
		}
	}
	return out
}

// forget drops what is known of a node that has lost its vote, and begins anew.
func (m *memory) forget(id identity.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.at[id]; ok {
		delete(m.at, id)
		m.dirty = true
	}
}

// only drops what is known of nodes that are no servers any more.
func (m *memory) only(servers []identity.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.at {
		if !slices.Contains(servers, id) {
			delete(m.at, id)
			m.dirty = true
		}
	}
}

// keep writes the file if there is something new.
func (m *memory) keep() error {
	m.mu.Lock()
	if !m.dirty {
		m.mu.Unlock()
		return nil
	}
	m.dirty = false
	m.mu.Unlock()
	ids := slices.Collect(maps.Keys(m.all()))
	b, err := proto.Marshal(&Memory{Generation: m.gen(), Acknowledged: m.list(ids)})
	if err == nil {
		err = durable.WriteFile(m.path, b)
	}
	if err != nil {
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
	}
	return err
}

func (m *memory) all() map[identity.NodeID]position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.at)
}

// remember keeps the file true while the node runs.
func (n *Node) remember(ctx context.Context) {
	tick := time.NewTicker(rememberEvery)
	defer tick.Stop()
	failed := false
	keep := func() {
		if voters, learners := n.servers(); len(voters) > 0 {
			n.memory.only(append(voters, learners...))
		}
		err := n.memory.keep()
		if err != nil && !failed {
			n.log.Error("what the other nodes acknowledged cannot be kept", "err", err)
		}
		failed = err != nil
	}
	defer keep()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			keep()
		}
	}
}

// remembered gives what a node must have in its log. Only a voter's word counted
// when something was committed; a learner may begin anew at any time.
func (n *Node) remembered(id identity.NodeID) position {
	if voters, _ := n.servers(); !slices.Contains(voters, id) {
		return position{}
	}
	return n.memory.of(id)
}

// acknowledgedBy is what this node, as the leader, tells the voters.
func (n *Node) acknowledgedBy() []*Acknowledged {
	if n.raft.State() != raft.Leader {
		return nil
	}
	voters, _ := n.servers()
	return n.memory.list(voters)
}

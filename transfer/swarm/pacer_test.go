package swarm

import (
	"context"
	"io"
	"sync"
	"testing"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/budget"
)

// meter is a pacer that lets all go, in pieces, and counts.
type meter struct {
	mu       sync.Mutex
	sent     map[identity.NodeID]map[budget.Class]int
	received map[budget.Class]int
}

const meterPiece = 10_000 // no divisor of anything

func (m *meter) Send(_ context.Context, to identity.NodeID, c budget.Class, n int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sent[to] == nil {
		m.sent[to] = map[budget.Class]int{}
	}
	n = min(n, meterPiece)
	m.sent[to][c] += n
	return n, nil
}

func (m *meter) Receive(_ context.Context, c budget.Class, n int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n = min(n, meterPiece)
	m.received[c] += n
	return n, nil
}

func TestPacer_IsAskedForEveryByteWithItsClass(t *testing.T) {
	const size = 5*mib + 7
	l := newLab(t)
	m := &meter{sent: map[identity.NodeID]map[budget.Class]int{}, received: map[budget.Class]int{}}
	l.pacer = m
	source, rule, client := l.start(), l.start(), l.start()
	data := content(size)
	w := source.put(data)
	l.held(source)
	fetchAll(t, w, rule)
	rule.has(data)
	m.mu.Lock()
	byRule := m.received[budget.Replication]
	if got := m.sent[rule.id.ID]; len(got) != 1 || got[budget.Replication] < size {
		t.Errorf("for a rule %v bytes were asked for by class: want %d of class %d alone", got, size, budget.Replication)
	}
	if byRule < size || m.received[budget.Client] != 0 {
		t.Errorf("for a rule %v bytes were read by class", m.received)
	}
	m.mu.Unlock()
	r, err := client.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if n, err := io.Copy(io.Discard, r); err != nil || n != size {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.sent[client.id.ID]; got[budget.Client] < size || len(got) != 1 {
		t.Errorf("for a client %v bytes were asked for by class: want %d of class %d alone", got, size, budget.Client)
	}
	if m.received[budget.Client] < size || m.received[budget.Replication] != byRule {
		t.Errorf("for a client %v bytes were read by class", m.received)
	}
}

func TestPacer_AClassThatIsNotKnownIsReplication(t *testing.T) {
	for named, want := range map[uint32]budget.Class{0: budget.Replication, 1: budget.Client, 2: budget.Hurried, 3: budget.Replication, 4: budget.Scrub,
		5: budget.Replication, 1<<32 - 1: budget.Replication} {
		if got := sentAs(named); got != want {
			t.Errorf("%d is class %d, want %d", named, got, want)
		}
	}
}

package catalog

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file is the project's own life in the model's histories (rule 12): nodes hear of
// it one after the other, as the control state comes to them, of its deletion too, and let
// go of it when the time is over in which it can be restored.

// unheard are nodes that do not know the project yet. Until they do they are no members:
// they write nothing and take nothing in.
type unheard struct{ unknown [modelNodes]bool }

func (m *model) beginUnheard() {
	if m.rng.IntN(2) == 0 { // one, so that the others have enough members for what may happen to them
		n := m.rng.IntN(modelNodes)
		m.rules.unknown[n], m.away[n] = true, true
	}
}

// hear has a node that does not know the project be offered entries of it, or hear of it.
func (m *model) hear() error {
	for n, unknown := range m.rules.unknown {
		if !unknown {
			continue
		}
		if m.rng.IntN(3) == 0 {
			return m.offer(m.member(), n)
		}
		return m.hasHeard(n)
	}
	return nil
}

func (m *model) hasHeard(n int) error {
	m.rules.unknown[n], m.doing = false, byDeletion
	if err := m.comeIn(n); err != nil {
		return err
	}
	return m.compare(n)
}

// hearAll ends that somebody has not heard.
func (m *model) hearAll() error {
	for n, unknown := range m.rules.unknown {
		if unknown {
			if err := m.hasHeard(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// offer: who does not know a project, by the control state, takes nothing of it.
func (m *model) offer(from, to int) error {
	if m.bad.takeUnknown {
		if _, err := pull(m.ctx, m.cats[to], m.cats[from], m.pid); err != nil {
			return err
		}
	}
	return m.wantNothing("rule 12", to)
}

// wantNothing: a node has nothing of the project, nor content that is its.
func (m *model) wantNothing(rule string, n int) error {
	rows, err := m.rows(n)
	if err != nil {
		return err
	}
	for key := range rows {
		if key[0] != tabInc {
			return fmt.Errorf("%s: node %d may have nothing of the project, and has the row %x", rule, n, key)
		}
	}
	return m.cats[n].view(func(r reader) error {
		return r.scan([]byte{tabBlob}, nil, true, func(key, value []byte) (bool, error) {
			pb := &rowpb.Blob{}
			if err := proto.Unmarshal(value, pb); err != nil {
				return false, damaged(key)
			}
			if projectFromPB(pb.ProvenFor) == m.pid {
				return false, fmt.Errorf("%s: node %d may have nothing of the project, and blob %x is its content", rule, n, key[1:])
			}
			return true, nil
		})
	})
}

// endProject has the project deleted and, after the time in which it can be restored,
// purged. It is called when all have the same.
func (m *model) endProject() error {
	var nodes []int
	for _, n := range m.rng.Perm(modelNodes) {
		if !m.away[n] {
			nodes = append(nodes, n)
		}
	}
	between := func() (from, to int) {
		return nodes[m.rng.IntN(len(nodes))], nodes[m.rng.IntN(len(nodes))]
	}
	for _, n := range nodes { // they hear that it is deleted
		if m.bad.dropDeleted {
			if err := m.cats[n].DropProject(m.ctx, m.pid); err != nil {
				return err
			}
		}
		if from, to := between(); from != to && !m.bad.dropDeleted {
			if err := m.exchangeAll(from, to); err != nil {
				return err
			}
		}
	}
	for _, n := range nodes {
		if err := m.compare(n); err != nil {
			return fmt.Errorf("rule 12: the project is deleted, and can be restored: %w", err)
		}
	}
	purged := map[int]bool{}
	for _, n := range nodes { // they hear that it can't be any more
		if err := m.cats[n].DropProject(m.ctx, m.pid); err != nil {
			return err
		}
		purged[n] = true
		from, to := between()
		if from == to || (purged[from] || purged[to]) && !m.bad.giveToPurged {
			continue // refused, at both ends
		}
		if _, err := pull(m.ctx, m.cats[to], m.cats[from], m.pid); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := m.wantNothing("rule 12", n); err != nil {
			return err
		}
	}
	return nil
}

package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// maxRecoveries is how many ended generations are remembered: a node that was
// away for more of them is not known again, and has to join anew.
const maxRecoveries = 32

// Recovery is the end of a raft generation: its majority was lost, and a node
// was made the only voter of the next one.
type Recovery struct {
	Ended [16]byte        // the generation
	Index uint64          // of the first entry of the next one
	At    time.Time       // when
	Node  identity.NodeID // where
}

func (v *View) meshRecovered(m *command.MeshRecovered) (int64, error) {
	if len(m.GetGeneration()) != len(v.mesh.Generation) {
		return 0, refuse(command.CodeInvalid, "a raft generation has %d bytes, not %d", len(v.mesh.Generation), len(m.GetGeneration()))
	}
	next := [16]byte(m.GetGeneration())
	if next == v.mesh.Generation || next == [16]byte{} || slices.ContainsFunc(v.mesh.Recoveries, func(r Recovery) bool { return r.Ended == next }) {
		return 0, refuse(command.CodeConflict, "a recovery needs a raft generation that was never there")
	}
	node, err := identity.NodeIDFromBytes(m.GetNodeId())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err)
	}
	if _, ok := v.Node(node); !ok {
		return 0, refuse(command.CodeNotFound, "the node %s is not a member", node)
	}
	kept := v.mesh.Recoveries[max(0, len(v.mesh.Recoveries)-maxRecoveries+1):]
	v.mesh.Recoveries = append(slices.Clone(kept), Recovery{Ended: v.mesh.Generation, Index: v.index, At: v.now(), Node: node})
	v.mesh.Generation = next
	v.mesh.Version++
	v.declareTags()
	return 0, nil
}

func recoveryRows(of []Recovery) []*RecoveryRow {
	var rows []*RecoveryRow
	for _, r := range of {
		rows = append(rows, &RecoveryRow{Generation: r.Ended[:], Index: r.Index, RecoveredUnixNs: toNanos(r.At), NodeId: r.Node[:]})
	}
	return rows
}

func readRecoveries(rows []*RecoveryRow) ([]Recovery, error) {
	var out []Recovery
	for _, row := range rows {
		node, err := identity.NodeIDFromBytes(row.GetNodeId())
		if err != nil {
			return nil, err
		}
		if len(row.GetGeneration()) != 16 {
			return nil, fmt.Errorf("raft generation of %d bytes", len(row.GetGeneration()))
		}
		out = append(out, Recovery{Ended: [16]byte(row.GetGeneration()), Index: row.GetIndex(), At: fromNanos(row.GetRecoveredUnixNs()), Node: node})
	}
	return out, nil
}

package state

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// RenewedIndexes is how far the raft indexes of a restored mesh are ahead of the
// backup's. Catalogues remember under which index a write was allowed: what the
// lost mesh did after the backup must not look like what the new one does.
const RenewedIndexes = 1 << 20

// outlives reports whether rows of a kind outlive a mesh, and whether anybody has
// decided that. What is dropped without a decision is missed when it is too late.
func outlives(rec *Record) (lasts, decided bool) {
	switch rec.GetRow().(type) {
	case *Record_Mesh, *Record_Site, *Record_User, *Record_Project, *Record_Member, *Record_Rule, *Record_Secret, *Record_StrongTag, *Record_TakenTag,
		*Record_Budget, *Record_Pause, *Record_Hold, *Record_RulePause:
		return true, true
	case *Record_Node, *Record_Removed, *Record_Key, // a restored mesh has others
		*Record_Token,                      // invitations to the old one
		*Record_Request,                    // nobody is left who asks again
		*Record_StagedTag, *Record_TagMark, // of switches and pushes under way, which a restore ends
		*Record_End: // of a snapshot's file
		return false, true
	}
	return false, false
}

// Lasting yields the rows that outlive a mesh, as a backup keeps them: settings,
// sites, users, projects, members, rules, budgets, pauses of sites and rules, held artifacts, strong tags with what
// their switches ordered, and sealed secrets, with their ids and
// versions. Not the nodes and their keys (a restored mesh has others), tokens
// (invitations to the old one) and remembered answers.
func (v *View) Lasting(yield func(*Record) bool) {
	for rec := range v.records {
		if lasts, _ := outlives(rec); !lasts {
			continue
		}
		switch row := rec.GetRow().(type) {
		case *Record_Mesh:
			row.Mesh.Generation, row.Mesh.Recoveries = nil, nil
		case *Record_Site:
			// Who drained, or was about to leave, was a machine of the old mesh.
			row.Site.DrainedUnixNs, row.Site.DrainedBy = 0, ""
			row.Site.Leavings = nil
		}
		if !yield(rec) {
			return
		}
	}
}

// Renewal is what a new mesh has that the one before had not.
type Renewal struct {
	Mesh       identity.MeshID
	Generation [16]byte
	Index      uint64 // of the backup
	Now        time.Time
	// Site and Node are the first site and its node.
	Site string
	Node *command.Node
	// Keys are the mesh keys that the secrets are sealed with, boxed to Node for
	// the new mesh. New ones are due from the start.
	Keys []*command.NodeKey
}

// Renew makes the state of a new mesh of the rows that [View.Lasting] gave. Its
// sites are there without nodes, but for the first.
func Renew(rows iter.Seq[*Record], r Renewal) (*State, error) {
	if r.Index > math.MaxInt64 {
		return nil, fmt.Errorf("state: raft index %d in a backup", r.Index)
	}
	v := newView()
	for rec := range rows {
		switch row := rec.GetRow().(type) {
		case *Record_Mesh:
			if !v.mesh.ID.IsZero() {
				return nil, errors.New("state: two meshes in one backup")
			}
			if row.Mesh.GetLevel() > command.Level {
				return nil, &UnsupportedError{Index: r.Index, Reason: fmt.Sprintf("a backup at command level %d", row.Mesh.GetLevel())}
			}
			row.Mesh.Generation = r.Generation[:]
		case nil:
			return nil, &UnsupportedError{Index: r.Index, Reason: "a kind of row in the backup"}
		default:
			if lasts, _ := outlives(rec); !lasts {
				return nil, fmt.Errorf("state: a row %T in a backup", row)
			}
		}
		if err := v.load(rec); err != nil {
			return nil, fmt.Errorf("state: restore a row: %w", err)
		}
	}
	if v.mesh.ID.IsZero() {
		return nil, errors.New("state: no mesh in the backup")
	}
	v.index = r.Index + RenewedIndexes
	v.clock = max(v.clock, toNanos(r.Now))
	v.mesh.ID, v.mesh.Version = r.Mesh, v.mesh.Version+1
	v.renewTags()
	if _, err := v.addNode(r.Site, r.Node); err != nil {
		return nil, err
	}
	v.keyState.GossipDue, v.keyState.MeshDue = true, true
	node := identity.NodeID(r.Node.GetId())
	for _, nk := range r.Keys {
		k := Key{Kind: nk.GetKind(), Version: nk.GetVersion(), CreatedAt: v.now()}
		if err := v.addBoxes(&k, []*command.KeyBox{{NodeId: node[:], Box: nk.GetBox()}}); err != nil {
			return nil, err
		}
		v.putKey(k)
	}
	for s := range v.Secrets() {
		if _, ok := v.Key(command.KeyKind_KEY_KIND_MESH, s.KeyVer); !ok {
			return nil, fmt.Errorf("state: the secret %s is sealed with a mesh key that the backup has not got", s.Place)
		}
	}
	s := New()
	s.publish(v)
	return s, nil
}

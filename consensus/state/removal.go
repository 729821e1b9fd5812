package state

import (
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state/table"
	"github.com/portolan/portolan/node/identity"
)

// Removed is a key that was a member's. It is kept for ever, or the key could
// come back: 32 bytes and a few words for each removal that a mesh ever sees.
type Removed struct {
	ID   identity.NodeID
	Site string // that it was
	At   time.Time
	By   string // actor
	Lost bool   // it did not answer when it was removed
}

// removals is part of View.
type removals struct {
	removed *table.Tree[Removed] // by node id
}

func newRemovals() removals { return removals{removed: table.New[Removed]()} }

// Removed finds a key that was removed.
func (v *View) Removed(id identity.NodeID) (Removed, bool) { return v.removed.Get(id[:]) }

// Draining reports whether a node's site asks to be left in peace.
func (v *View) Draining(id identity.NodeID) bool {
	n, ok := v.Node(id)
	if !ok {
		return false
	}
	s, ok := v.SiteByID(n.SiteID)
	return ok && s.Draining()
}

// CheckRemove says why a node cannot be removed, nil if it can. Whether the rest
// can go on without it is the leader's to judge.
func (v *View) CheckRemove(id identity.NodeID) error {
	n, ok := v.Node(id)
	if r, gone := v.Removed(id); !ok && gone {
		return refuse(command.CodeNotFound, "the node %s of site %s was removed already, at %s by %s", id.Short(), r.Site, r.At.Format(time.RFC3339), r.By)
	}
	if !ok {
		return refuse(command.CodeNotFound, "there is no node %s: see the ids with: portolan node list", id)
	}
	for other := range all(v.nodes, nil) {
		if other.ID != id && !other.Witness {
			return nil
		}
	}
	return refuse(command.CodeInvalid, "site %s is the last one that holds content: add another before you remove it, or stop its node and delete its data directory to end the mesh", n.Site)
}

// nodeRemove takes a node, and its site if it was the last one there, out of the
// mesh. Rules and residency go on naming the site: what they say is people's to
// change, and holds again for a new site of that name.
func (v *View) nodeRemove(actor string, m *command.NodeRemove) (int64, error) {
	id, err := identity.NodeIDFromBytes(m.GetNodeId())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err)
	}
	if err := v.CheckRemove(id); err != nil {
		return 0, err
	}
	n, _ := v.Node(id)
	s, _ := v.SiteByID(n.SiteID)
	if err := checkVersion("site "+s.Name, s.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	// What was found out of the site is true as long as it took no pushes.
	if m.GetAnnounced() != 0 && !s.Announces(m.GetAnnounced(), v.now()) {
		return 0, refuse(command.CodeConflict, "the removal of site %s was called off meanwhile, and it may have taken pushes since: begin anew", s.Name)
	}
	v.nodes, _, _ = v.nodes.Delete(id[:])
	v.discloseKeys(id) // it knows those of now
	if !n.Store.IsZero() {
		v.stores, _, _ = v.stores.Delete(n.Store[:])
	}
	v.putRemoved(Removed{ID: id, Site: s.Name, At: v.now(), By: clip(actor), Lost: m.GetLost()})
	for t := range all(v.tokens, nil) {
		if t.UsedBy == id {
			v.tokens, _, _ = v.tokens.Delete(idKey(t.ID))
		}
	}
	if len(v.NodesOf(s.Name)) > 0 {
		s.Version++
		v.putSite(s)
		v.revokeTokens(actor, s)
	} else {
		v.dropSite(actor, s)
	}
	return s.ID, nil
}

// dropSite forgets a site that has no node: its name is free.
func (v *View) dropSite(actor string, s Site) {
	v.sites, _, _ = v.sites.Delete(idKey(s.ID))
	v.siteNames, _, _ = v.siteNames.Delete([]byte(s.Name))
	v.dropResidence(s.Name)
	v.revokeTokens(actor, s)
}

// revokeTokens: an invitation to a site of that name was for another time.
// Whoever frees the name gives out a new one.
func (v *View) revokeTokens(actor string, s Site) {
	for t := range all(v.tokens, nil) {
		if t.Site == s.Name && t.UsedBy.IsZero() && !t.Revoked() {
			t.RevokedAt, t.RevokedBy = v.now(), clip(actor)
			t.Version++
			v.putToken(t)
		}
	}
}

func (v *View) siteRemove(actor string, m *command.SiteRemove) (int64, error) {
	s, ok := v.SiteByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no site %d: see the sites with: portolan site list", m.GetId())
	}
	if err := checkVersion("site "+s.Name, s.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	if n := len(v.NodesOf(s.Name)); n > 0 {
		return 0, refuse(command.CodeConflict, "a node has joined as site %s meanwhile: look again, and remove the node if it shall go", s.Name)
	}
	v.dropSite(actor, s)
	return s.ID, nil
}

func (v *View) siteDrain(actor string, m *command.SiteDrain) (int64, error) {
	s, ok := v.SiteByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no site %d: see the sites with: portolan site list", m.GetId())
	}
	if err := checkVersion("site "+s.Name, s.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	if s.Draining() == m.GetDrain() {
		return s.ID, nil // again is as good as once
	}
	s.DrainedAt, s.DrainedBy = time.Time{}, ""
	if m.GetDrain() {
		s.DrainedAt, s.DrainedBy = v.now(), clip(actor)
	}
	s.Version++
	v.putSite(s)
	return s.ID, nil
}

// siteLeave announces a removal, says it again, or takes it back. The record's version
// stays: who removes the site may name the one that they saw.
func (v *View) siteLeave(actor string, m *command.SiteLeave) (int64, error) {
	s, ok := v.SiteByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no site %d: see the sites with: portolan site list", m.GetId())
	}
	if err := checkVersion("site "+s.Name, s.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	said := Removal{Index: m.GetAnnounced(), At: v.now(), By: clip(actor)}
	switch {
	case m.GetWithdraw(): // what is not there any more is as good as called off
	case said.Index == 0:
		said.Index = v.index
	case !s.Announces(said.Index, v.now()):
		return 0, refuse(command.CodeConflict, "the removal of site %s was called off meanwhile, and it may have taken pushes since: begin anew", s.Name)
	}
	before := s.Removals
	s.Removals = nil
	for _, l := range before {
		if l.counts(v.now()) && l.Index != said.Index && !(m.GetWithdraw() && said.Index == 0) {
			s.Removals = append(s.Removals, l)
		}
	}
	if !m.GetWithdraw() {
		s.Removals = append(s.Removals[max(0, len(s.Removals)+1-MaxRemovals):], said)
	}
	v.putSite(s)
	return s.ID, nil
}

// checkKey refuses a key that was removed.
func (v *View) checkKey(id identity.NodeID) error {
	r, gone := v.Removed(id)
	if !gone {
		return nil
	}
	return refuse(command.CodeDenied, "the key of this node was that of site %s and was removed from the mesh at %s: a removed key never comes back; join with an empty data directory", r.Site, r.At.Format(time.RFC3339))
}

func (v *View) putRemoved(r Removed) { v.removed, _, _ = v.removed.Insert(r.ID[:], r) }

func removedRow(r Removed) *Record {
	return &Record{Row: &Record_Removed{&RemovedRow{NodeId: r.ID[:], Site: r.Site, RemovedUnixNs: toNanos(r.At), RemovedBy: r.By, Lost: r.Lost}}}
}

func (v *View) loadRemoved(row *RemovedRow) error {
	id, err := identity.NodeIDFromBytes(row.GetNodeId())
	if err != nil {
		return err
	}
	v.putRemoved(Removed{ID: id, Site: row.GetSite(), At: fromNanos(row.GetRemovedUnixNs()), By: row.GetRemovedBy(), Lost: row.GetLost()})
	return nil
}

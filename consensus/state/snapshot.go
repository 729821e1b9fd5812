package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// Snapshot formats, for ever:
//
//	1  header, rows as state.proto has them, end with the number of rows
const snapshotFormat = 1

// maxRecord bounds one row on reading; the largest command is 64 KiB.
const maxRecord = 1 << 20

var delim = protodelim.UnmarshalOptions{MaxSize: maxRecord}

// Snapshot writes the view. It can be read back by [State.Restore], here and on
// any other node of the same or a newer version.
func (v *View) Snapshot(w io.Writer) error {
	out := bufio.NewWriter(w)
	if _, err := protodelim.MarshalTo(out, &command.SnapshotHeader{Format: snapshotFormat, Level: v.mesh.Level, Index: v.index}); err != nil {
		return fmt.Errorf("state: write snapshot: %w", err)
	}
	var n uint64
	for rec := range v.records {
		if _, err := protodelim.MarshalTo(out, rec); err != nil {
			return fmt.Errorf("state: write snapshot: %w", err)
		}
		n++
	}
	if _, err := protodelim.MarshalTo(out, &Record{Row: &Record_End{End: &End{Records: n}}}); err != nil {
		return fmt.Errorf("state: write snapshot: %w", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("state: write snapshot: %w", err)
	}
	return nil
}

// Restore replaces the state by a snapshot, all of it or nothing. A snapshot
// that is not later than the state changes nothing: what it says was applied
// here already.
func (s *State) Restore(r io.Reader) error {
	in := bufio.NewReader(r)
	var h command.SnapshotHeader
	if err := delim.UnmarshalFrom(in, &h); err != nil {
		return fmt.Errorf("state: read snapshot: %w", noEOF(err))
	}
	if h.GetFormat() > snapshotFormat || h.GetLevel() > command.Level {
		return &UnsupportedError{Index: h.GetIndex(), Reason: fmt.Sprintf("a snapshot of format %d at command level %d", h.GetFormat(), h.GetLevel())}
	}
	if h.GetIndex() <= s.View().index {
		return nil
	}
	v := newView()
	v.index = h.GetIndex()
	v.build(true)
	for n := uint64(0); ; n++ {
		var rec Record
		if err := delim.UnmarshalFrom(in, &rec); err != nil {
			return fmt.Errorf("state: read snapshot row %d: %w", n, noEOF(err))
		}
		if end, ok := rec.GetRow().(*Record_End); ok {
			if end.End.GetRecords() != n {
				return fmt.Errorf("state: snapshot has %d rows, not %d as it says: it is damaged", n, end.End.GetRecords())
			}
			break
		}
		if err := v.load(&rec); err != nil {
			return fmt.Errorf("state: read snapshot row %d: %w", n, err)
		}
	}
	// The header is there to refuse early; the row is what the mesh is at.
	if v.mesh.Level > command.Level {
		return &UnsupportedError{Index: v.index, Reason: fmt.Sprintf("a snapshot of a mesh at command level %d", v.mesh.Level)}
	}
	v.build(false)
	clear(s.answers)
	for _, r := range v.requests {
		s.answers[r.id] = r
	}
	s.publish(v)
	return nil
}

// noEOF: a snapshot that stops before its end is damaged, not finished.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// records yields every row, referenced ones before those that refer to them.
func (v *View) records(yield func(*Record) bool) {
	mesh := &MeshRow{MeshId: v.mesh.ID[:], Generation: v.mesh.Generation[:], Level: v.mesh.Level,
		CreatedUnixNs: toNanos(v.mesh.CreatedAt), Profile: v.mesh.Profile, LastId: v.lastID, ClockUnixNs: v.clock, Version: v.mesh.Version,
		Voters: uint32(v.mesh.Voters), Recoveries: recoveryRows(v.mesh.Recoveries), Keys: v.keyState.row(), TagsEpoch: v.tagsEpoch, TagMarksFrom: v.marksFrom}
	if !yield(&Record{Row: &Record_Mesh{mesh}}) {
		return
	}
	for s := range all(v.sites, nil) {
		if !yield(&Record{Row: &Record_Site{siteRow(s)}}) {
			return
		}
	}
	for n := range all(v.nodes, nil) {
		if !yield(&Record{Row: &Record_Node{&NodeRow{Node: n.Command(), SiteId: n.SiteID, JoinedUnixNs: toNanos(n.JoinedAt), Version: n.Record}}}) {
			return
		}
	}
	for r := range all(v.removed, nil) {
		if !yield(removedRow(r)) {
			return
		}
	}
	for u := range all(v.users, nil) {
		row := &UserRow{Id: u.ID, Name: u.Name, PasswordHash: u.PasswordHash, Email: u.Email, RealName: u.RealName, Comment: u.Comment, Admin: u.Admin,
			CreatedUnixNs: toNanos(u.CreatedAt), UpdatedUnixNs: toNanos(u.UpdatedAt), Version: u.Version}
		if !yield(&Record{Row: &Record_User{row}}) {
			return
		}
	}
	for p := range all(v.projects, nil) {
		row := &ProjectRow{Id: p.ID, ProjectId: p.PID[:], Name: p.Name, Public: p.Public, OwnerId: p.OwnerID, Sites: p.Sites,
			Leaving: p.Leaving, Syncing: p.Syncing, Expelled: p.Expelled,
			CreatedUnixNs: toNanos(p.CreatedAt), UpdatedUnixNs: toNanos(p.UpdatedAt), DeletedUnixNs: toNanos(p.DeletedAt), PurgedUnixNs: toNanos(p.PurgedAt), Version: p.Version,
			Tags: p.Tags.row(), Durability: uint32(p.Durability)}
		if !yield(&Record{Row: &Record_Project{row}}) {
			return
		}
	}
	if !v.tagRecords(yield) {
		return
	}
	for m := range all(v.members, nil) {
		if !yield(&Record{Row: &Record_Member{&MemberRow{Id: m.ID, ProjectId: m.ProjectID, UserId: m.UserID, Role: int32(m.Role), Version: m.Version}}}) {
			return
		}
	}
	for r := range all(v.rules, nil) {
		row := &RuleRow{Id: r.ID, Version: r.Version, CreatedUnixNs: toNanos(r.CreatedAt), Rule: r.Command()}
		if !yield(&Record{Row: &Record_Rule{row}}) {
			return
		}
	}
	for t := range all(v.tokens, nil) {
		row := &TokenRow{Id: t.ID, Site: t.Site, SecretHash: t.SecretHash[:], CreatedUnixNs: toNanos(t.CreatedAt), ExpiresUnixNs: toNanos(t.ExpiresAt),
			UsedUnixNs: toNanos(t.UsedAt), CreatedBy: t.CreatedBy, Version: t.Version, RevokedUnixNs: toNanos(t.RevokedAt), RevokedBy: t.RevokedBy}
		if !t.UsedBy.IsZero() {
			row.UsedBy = t.UsedBy[:]
		}
		if !yield(&Record{Row: &Record_Token{row}}) {
			return
		}
	}
	if !v.trafficRecords(yield) || !v.holdRecords(yield) {
		return
	}
	if !v.keyRecords(yield) {
		return
	}
	for _, r := range v.requests {
		if !yield(&Record{Row: &Record_Request{&RequestRow{RequestId: []byte(r.id), Index: r.index, Id: r.result, Code: r.code, Message: r.message}}}) {
			return
		}
	}
}

// Command gives the record that would make the node anew.
func (n Node) Command() *command.Node {
	m := &command.Node{Id: n.ID[:], BoxKey: n.BoxKey[:], BoxSignature: n.BoxSignature, Host: n.Host, GossipPort: uint32(n.GossipPort), ControlPort: uint32(n.ControlPort),
		DataPort: uint32(n.DataPort), RegistryUrl: n.RegistryURL, Level: n.Level, Version: n.Version, Witness: n.Witness}
	if !n.Store.IsZero() {
		m.StoreId = n.Store[:]
	}
	return m
}

// load puts one row into a view that is being restored.
func (v *View) load(rec *Record) error {
	switch row := rec.GetRow().(type) {
	case *Record_Mesh:
		return v.loadMesh(row.Mesh)
	case *Record_Site:
		v.loadSite(row.Site)
	case *Record_Node:
		n, err := NodeOf(row.Node.GetNode())
		if err != nil {
			return err
		}
		site, ok := v.SiteByID(row.Node.GetSiteId())
		if !ok {
			return fmt.Errorf("node %s is of site %d, which is not there", n.ID, row.Node.GetSiteId())
		}
		n.SiteID, n.Site, n.JoinedAt, n.Record = site.ID, site.Name, fromNanos(row.Node.GetJoinedUnixNs()), counted(row.Node.GetVersion())
		v.putNode(n)
	case *Record_User:
		u := row.User
		v.putUser(User{ID: u.GetId(), Name: u.GetName(), PasswordHash: u.GetPasswordHash(), Email: u.GetEmail(), RealName: u.GetRealName(), Comment: u.GetComment(),
			Admin: u.GetAdmin(), CreatedAt: fromNanos(u.GetCreatedUnixNs()), UpdatedAt: fromNanos(u.GetUpdatedUnixNs()), Version: u.GetVersion()})
	case *Record_Project:
		p := row.Project
		pid, err := identity.ProjectIDFromBytes(p.GetProjectId())
		if err != nil {
			return err
		}
		tags, err := loadTagState(p.GetTags())
		if err != nil {
			return err
		}
		v.putProject(Project{Tags: tags, Durability: int(p.GetDurability()), ID: p.GetId(), PID: pid, Name: p.GetName(), Public: p.GetPublic(), OwnerID: p.GetOwnerId(), Sites: p.GetSites(),
			Leaving: p.GetLeaving(), Syncing: p.GetSyncing(), Expelled: p.GetExpelled(),
			CreatedAt: fromNanos(p.GetCreatedUnixNs()), UpdatedAt: fromNanos(p.GetUpdatedUnixNs()), DeletedAt: fromNanos(p.GetDeletedUnixNs()), PurgedAt: fromNanos(p.GetPurgedUnixNs()), Version: p.GetVersion()})
	case *Record_Member:
		m := row.Member
		v.putMember(Member{ID: m.GetId(), ProjectID: m.GetProjectId(), UserID: m.GetUserId(), Role: Role(m.GetRole()), Version: counted(m.GetVersion())})
	case *Record_Rule:
		r := RuleOf(row.Rule.GetRule())
		r.ID, r.Version, r.CreatedAt = row.Rule.GetId(), row.Rule.GetVersion(), fromNanos(row.Rule.GetCreatedUnixNs())
		v.putRule(r)
	case *Record_Budget:
		b := row.Budget
		v.putBudget(Budget{ID: b.GetId(), From: b.GetFrom(), To: b.GetTo(), Mbit: b.GetMbit(), Version: b.GetVersion()})
	case *Record_Pause:
		p := row.Pause
		v.putPause(Pause{Site: p.GetSite(), At: fromNanos(p.GetPausedUnixNs()), By: p.GetPausedBy()})
	case *Record_Hold:
		return v.loadHold(row.Hold)
	case *Record_RulePause:
		p := row.RulePause
		v.putRulePause(RulePause{RuleID: p.GetRuleId(), Site: p.GetSite(), At: fromNanos(p.GetPausedUnixNs()), By: p.GetPausedBy()})
	case *Record_Removed:
		return v.loadRemoved(row.Removed)
	case *Record_StrongTag:
		return v.loadTag(row.StrongTag, false)
	case *Record_StagedTag:
		return v.loadTag(row.StagedTag, true)
	case *Record_TagMark:
		return v.loadMark(row.TagMark)
	case *Record_TakenTag:
		return v.loadTaken(row.TakenTag)
	case *Record_Token:
		return v.loadToken(row.Token)
	case *Record_Key:
		return v.loadKey(row.Key)
	case *Record_Secret:
		return v.loadSecret(row.Secret)
	case *Record_Request:
		r := row.Request
		v.requests = append(v.requests, request{id: string(r.GetRequestId()), index: r.GetIndex(), result: r.GetId(), code: r.GetCode(), message: r.GetMessage()})
	default:
		return &UnsupportedError{Index: v.index, Reason: "a kind of row in the snapshot"}
	}
	return nil
}

// counted: rows of all kinds have versions since nodes, members, tokens and the
// mesh got theirs; what was written before is at its first.
func counted(version uint64) uint64 { return max(1, version) }

func (v *View) loadMesh(m *MeshRow) error {
	id, err := identity.MeshIDFromBytes(m.GetMeshId())
	if err != nil {
		return err
	}
	if len(m.GetGeneration()) != len(v.mesh.Generation) {
		return fmt.Errorf("raft generation of %d bytes", len(m.GetGeneration()))
	}
	v.mesh = Mesh{ID: id, Generation: [16]byte(m.GetGeneration()), Level: m.GetLevel(), Profile: m.GetProfile(),
		Voters: int(m.GetVoters()), CreatedAt: fromNanos(m.GetCreatedUnixNs()), Version: counted(m.GetVersion())}
	v.lastID, v.clock, v.keyState = m.GetLastId(), m.GetClockUnixNs(), m.GetKeys().keyState()
	v.tagsEpoch, v.marksFrom = m.GetTagsEpoch(), m.GetTagMarksFrom()
	v.mesh.Recoveries, err = readRecoveries(m.GetRecoveries())
	return err
}

func (v *View) loadToken(r *TokenRow) error {
	t := Token{ID: r.GetId(), Site: r.GetSite(), CreatedAt: fromNanos(r.GetCreatedUnixNs()), ExpiresAt: fromNanos(r.GetExpiresUnixNs()),
		UsedAt: fromNanos(r.GetUsedUnixNs()), CreatedBy: r.GetCreatedBy(), Version: counted(r.GetVersion()),
		RevokedAt: fromNanos(r.GetRevokedUnixNs()), RevokedBy: r.GetRevokedBy()}
	if len(r.GetSecretHash()) != len(t.SecretHash) {
		return fmt.Errorf("token %d has a secret hash of %d bytes", t.ID, len(r.GetSecretHash()))
	}
	copy(t.SecretHash[:], r.GetSecretHash())
	if len(r.GetUsedBy()) > 0 {
		id, err := identity.NodeIDFromBytes(r.GetUsedBy())
		if err != nil {
			return err
		}
		t.UsedBy = id
	}
	v.putToken(t)
	return nil
}

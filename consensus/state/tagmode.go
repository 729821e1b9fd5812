package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// maxDurability bounds how many sites a push may wait for: each costs a client's
// time, and more than five copies are a rule's business.
const maxDurability = 5

const (
	// MaxSeen bounds the incarnations of TagState.Seen: they go into one command of
	// 64 KiB, and stay with the project. A project gets one with each restart of each
	// of its sites that is pushed to. What of a longer vector is left out is said of the
	// tags that it concerns (taken.go).
	MaxSeen = 3000
	// seenPair is an incarnation and a sequence number.
	seenPair = 16
)

// TagMode says who decides what a project's tags say. Numbers are the command's.
type TagMode uint8

// The modes.
const (
	EventualTags TagMode = TagMode(command.TagMode_TAG_MODE_EVENTUAL)
	StrongTags   TagMode = TagMode(command.TagMode_TAG_MODE_STRONG)
)

// String gives the mode's name.
func (m TagMode) String() string {
	switch m {
	case EventualTags:
		return "eventual"
	case StrongTags:
		return "strong"
	}
	return fmt.Sprintf("tag mode %d", uint8(m))
}

// ParseTagMode reads what String gives.
func ParseTagMode(s string) (TagMode, error) {
	for _, m := range []TagMode{EventualTags, StrongTags} {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("%q is not a mode of tags: use strong or eventual", s)
}

// TagState is how far a project is with its tags' mode.
type TagState struct {
	Mode TagMode
	// To, Index, SwitchAt, SwitchBy and Force are of a switch under way; Index is
	// the raft index of the command that began it, 0: there is none.
	To       TagMode
	Index    uint64
	SwitchAt time.Time
	SwitchBy string
	Force    bool // sites that do not answer are not waited for
	Importer identity.NodeID
	// Import names its attempt: tags, and what it had seen when it read them, are of one.
	Import uint64
	Staged int // tags that it has imported
	// Late are the sites that the last switch did not wait for: what they wrote may
	// turn up at any time.
	Late []string
	// LateBefore: what sites wrote before the last switch to strong, or before the project
	// was created strong, was allowed under rights of an earlier raft index; 0: it never was
	// strong.
	LateBefore uint64
	// Seen is what the importer of the last switch to strong had seen of the project, in
	// pairs of 8 byte incarnation and sequence number: what sites wrote of it was
	// ordered before the switch, however old it is where it turns up. Of single tags
	// there may be more: View.Taken.
	Seen []byte
	// Base: tags of the project without a row were gone at this seq.
	Base uint64
	// Seq is that of the last change of a strong tag, also after the project left
	// the mode: eventual writes come after it. 0: there never was one.
	Seq uint64
	// Note says why the last switch was called off.
	Note string
}

// Spoken gives the seq up to which the state knows what it said of a project's tags:
// what was said before a recovery or restore is not to be heard any more.
func (v *View) Spoken(p Project) uint64 {
	return max(p.Tags.Seq, p.Tags.Base, v.tagsEpoch<<epochShift)
}

// Switching reports whether a switch is under way: nobody sets or deletes tags.
func (t TagState) Switching() bool { return t.Index != 0 }

func (v *View) checkDurability(n uint32, p Project) error {
	if n > maxDurability {
		return refuse(command.CodeInvalid, "durability %d is not possible: a push waits for %d sites at most; a rule brings copies to more", n, maxDurability)
	}
	if have := v.mayHold(p); int(n) > max(1, have) {
		return refuse(command.CodeInvalid, "durability %d is not possible: project %s may rest at %d sites", n, p.Name, have)
	}
	return nil
}

// PushCopies gives at how many sites a push must be before it is answered. What
// strong tags name is at two, where two may hold it.
func (v *View) PushCopies(p Project, byTag bool) int { return p.PushCopies(byTag, v.mayHold(p)) }

// PushCopies is [View.PushCopies] for whoever knows how many sites may hold the
// project.
func (p Project) PushCopies(byTag bool, mayHold int) int {
	n := max(1, p.Durability)
	if !byTag || p.Tags.Mode != StrongTags || n > 1 {
		return n
	}
	return min(2, max(1, mayHold))
}

// mayHold counts the sites that may hold a project's content.
func (v *View) mayHold(p Project) (n int) {
	for _, s := range v.ContentSites() {
		if v.MayRest(p, s.Name) {
			n++
		}
	}
	return n
}

func (v *View) tagsMode(actor string, m *command.TagsMode) (int64, error) {
	p, ok := v.ProjectByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no project %d", m.GetId())
	}
	if m.GetStep() == command.TagsMode_STEP_BEGIN {
		return p.ID, v.beginSwitch(actor, p, m)
	}
	if !p.Tags.Switching() || p.Tags.Index != m.GetIndex() {
		return 0, refuse(command.CodeConflict, "project %s is not in this switch of its tags any more", p.Name)
	}
	switch m.GetStep() {
	case command.TagsMode_STEP_IMPORT:
		return p.ID, v.importTags(p, m)
	case command.TagsMode_STEP_END:
		return p.ID, v.endSwitch(p, m)
	case command.TagsMode_STEP_CANCEL:
		v.cancelSwitch(p, m.GetReason())
		return p.ID, nil
	default:
		return 0, refuse(command.CodeInvalid, "%d is not a step of a switch", m.GetStep())
	}
}

func (v *View) beginSwitch(actor string, p Project, m *command.TagsMode) error {
	to := TagMode(m.GetTo())
	if to != EventualTags && to != StrongTags {
		return refuse(command.CodeInvalid, "%d is not a mode of tags", m.GetTo())
	}
	if err := checkVersion("project "+p.Name, p.Version, m.GetIfVersion()); err != nil {
		return err
	}
	switch {
	case p.Tags.Switching() && to == p.Tags.Mode:
		v.cancelSwitch(p, "called off by "+clip(actor))
		return nil
	case p.Tags.Switching():
		p.Tags.Force = p.Tags.Force || m.GetForce()
	case to == p.Tags.Mode && to == EventualTags && m.GetForce():
		// Nobody is left who has the strong writes of before: go on without them.
		p.Tags.Seq, p.Tags.Base = 0, v.seq() // what was said until now is known of
	case to == p.Tags.Mode:
		return nil // again is as good as once
	default:
		p.Tags.To, p.Tags.Index, p.Tags.SwitchAt, p.Tags.SwitchBy = to, v.index, v.now(), clip(actor)
		p.Tags.Force, p.Tags.Note, p.Tags.Importer, p.Tags.Import, p.Tags.Staged = m.GetForce(), "", identity.NodeID{}, 0, 0
	}
	p.Version++
	p.UpdatedAt = v.now()
	v.putProject(p)
	return nil
}

// dropStaged forgets what was imported.
func (v *View) dropStaged(p *Project) {
	for t := range all(v.staged, p.PID[:]) {
		v.unstage(t)
	}
	p.Tags.Staged = 0
}

// settled takes a switch out of a project.
func (t *TagState) settled() {
	t.To, t.Index, t.SwitchAt, t.SwitchBy, t.Force, t.Importer, t.Import = EventualTags, 0, time.Time{}, "", false, identity.NodeID{}, 0
}

func (v *View) cancelSwitch(p Project, reason string) {
	v.dropStaged(&p)
	p.Tags.settled()
	p.Tags.Note = reason
	if len(reason) > maxText {
		p.Tags.Note = clip(reason)
	}
	p.Version++
	p.UpdatedAt = v.now()
	v.putProject(p)
}

func (v *View) importTags(p Project, m *command.TagsMode) error {
	node, err := identity.NodeIDFromBytes(m.GetNodeId())
	if err != nil {
		return refuse(command.CodeInvalid, "%s", err)
	}
	if p.Tags.To != StrongTags {
		return refuse(command.CodeConflict, "the tags of project %s are not on their way to be strong", p.Name)
	}
	if m.GetFirst() {
		v.dropStaged(&p)
		p.Tags.Importer, p.Tags.Import = node, m.GetImport()
	} else if p.Tags.Importer != node || p.Tags.Import != m.GetImport() {
		// Also of this node's own: a command that was given up may be carried out after all.
		return refuse(command.CodeConflict, "the tags of project %s are imported anew now", p.Name)
	}
	for _, t := range m.GetTags() {
		if err := checkRepository(t.GetRepository()); err != nil {
			return err
		}
		if err := checkTag(t.GetName()); err != nil {
			return err
		}
		if err := checkDigest(t.GetDigest()); err != nil {
			return err
		}
		if err := checkTaken(t); err != nil {
			return err
		}
		row := StrongTag{PID: p.PID, Repository: t.GetRepository(), Name: t.GetName(), Digest: t.GetDigest(), Stamp: t.GetStamp(), Actor: clip(t.GetActor()), ACLIndex: t.GetAclIndex(), Taken: string(t.GetTaken())}
		if again := v.stage(row); !again {
			p.Tags.Staged++
		}
	}
	if err := v.tooManyTags(0); err != nil {
		return err
	}
	v.putProject(p)
	return nil
}

func (v *View) endSwitch(p Project, m *command.TagsMode) error {
	if p.Tags.To == StrongTags {
		node, err := identity.NodeIDFromBytes(m.GetNodeId())
		if err != nil {
			return refuse(command.CodeInvalid, "%s", err)
		}
		if n := len(m.GetSeen()); n%seenPair != 0 || n > MaxSeen*seenPair {
			return refuse(command.CodeInvalid, "%d bytes are not what a site has seen of project %s", n, p.Name)
		}
		if p.Tags.Importer != node || p.Tags.Import != m.GetImport() {
			return refuse(command.CodeConflict, "the tags of project %s are imported anew now", p.Name)
		}
		if count := int(m.GetCount()); p.Tags.Staged != count {
			return refuse(command.CodeConflict, "the tags of project %s are not all imported: %d of %d", p.Name, p.Tags.Staged, count)
		}
		var rows []StrongTag
		for t := range all(v.staged, p.PID[:]) {
			rows = append(rows, t)
		}
		if err := v.take(p.PID, m.GetSeen(), rows); err != nil {
			return err
		}
		v.dropStaged(&p)
		for _, t := range rows {
			t.Seq, t.Taken = v.seq(), ""
			v.putTag(t)
		}
		p.Tags.Base, p.Tags.Seq = v.seq(), v.seq()
		p.Tags.Seen = m.GetSeen()
	} else {
		v.dropTags(p.PID)
	}
	p.Tags.Mode = p.Tags.To
	p.Tags.Late = set(m.GetLate())
	if p.Tags.Mode == StrongTags {
		// Also if all were waited for: a site may write the tags down before it has all
		// that the importer had.
		p.Tags.LateBefore = v.index
	}
	p.Tags.settled()
	p.Version++
	p.UpdatedAt = v.now()
	v.putProject(p)
	return nil
}

// dropTags forgets all rows of a project: its tags are in the catalogues.
func (v *View) dropTags(pid identity.ProjectID) {
	var rows []StrongTag
	for t := range all(v.strong, pid[:]) {
		rows = append(rows, t)
	}
	for _, t := range rows {
		v.dropTag(t)
	}
}

// indexTags keeps the list of projects that transfer/tags looks after.
func (v *View) indexTags(p Project) {
	if !p.Deleted() && (p.Tags.Mode == StrongTags || p.Tags.Switching()) {
		v.strongPID, _, _ = v.strongPID.Insert(p.PID[:], p.ID)
	} else {
		v.strongPID, _, _ = v.strongPID.Delete(p.PID[:])
	}
}

// deletedTags: a deleted project needs no rows; its tags stay in the catalogues,
// eventual, as long as its content does. What the last switch to strong tags ordered
// is kept with them: if it is restored, what sites wrote before that did not lose.
func (v *View) deletedTags(p *Project) {
	v.dropStaged(p)
	v.dropTags(p.PID)
	t := p.Tags
	p.Tags = TagState{Base: t.Base, Seq: t.Seq, LateBefore: t.LateBefore, Seen: t.Seen}
}

func (t TagState) row() *TagStateRow {
	r := &TagStateRow{Mode: command.TagMode(t.Mode), To: command.TagMode(t.To), SwitchIndex: t.Index, SwitchUnixNs: toNanos(t.SwitchAt), SwitchBy: t.SwitchBy, Force: t.Force,
		Staged: uint64(t.Staged), Late: t.Late, Base: t.Base, Seq: t.Seq, Note: t.Note, LateBefore: t.LateBefore, Seen: t.Seen,
		Import: t.Import}
	if !t.Importer.IsZero() {
		r.Importer = t.Importer[:]
	}
	if t.isZero() {
		return nil
	}
	return r
}

func (t TagState) isZero() bool {
	return t.Mode == EventualTags && t.Index == 0 && t.Seq == 0 && t.Base == 0 && t.Note == "" && len(t.Late) == 0 && t.LateBefore == 0
}

func loadTagState(r *TagStateRow) (TagState, error) {
	if r == nil {
		return TagState{}, nil
	}
	t := TagState{Mode: TagMode(r.GetMode()), To: TagMode(r.GetTo()), Index: r.GetSwitchIndex(), SwitchAt: fromNanos(r.GetSwitchUnixNs()), SwitchBy: r.GetSwitchBy(),
		Force: r.GetForce(), Staged: int(r.GetStaged()), Late: slices.Clone(r.GetLate()), Base: r.GetBase(), Seq: r.GetSeq(), Note: r.GetNote(), LateBefore: r.GetLateBefore(),
		Seen: slices.Clone(r.GetSeen()), Import: r.GetImport()}
	if len(r.GetImporter()) > 0 {
		id, err := identity.NodeIDFromBytes(r.GetImporter())
		if err != nil {
			return t, err
		}
		t.Importer = id
	}
	return t, nil
}

// renewTags makes what a backup said of tags true in a new mesh: a switch that
// was under way is called off, and all rows are declared anew.
func (v *View) renewTags() {
	for p := range all(v.projects, nil) {
		if p.Tags.Switching() {
			v.dropStaged(&p)
			p.Tags.settled()
			p.Tags.Note = "the mesh was restored from a backup meanwhile"
			v.putProject(p)
		}
		if p.Tags.Mode != StrongTags && p.Tags.Seq != 0 {
			p.Tags.Seq = 0 // nobody may be left who has them
			v.putProject(p)
		}
	}
	v.declareTags()
}

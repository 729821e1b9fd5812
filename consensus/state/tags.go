package state

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state/table"
	"github.com/portolan/portolan/node/identity"
)

// What is kept of strong tags, in everybody's memory: about 400 bytes a row.
const (
	// MaxStrongTags bounds the strong tags of all projects together.
	MaxStrongTags = 100_000
	// maxGoneTags and goneTagsFor bound the deletions that are remembered, for nodes
	// that were away; a node that was away longer compares all tags.
	maxGoneTags = 100_000
	goneTagsFor = 30 * 24 * time.Hour
	// maxTagMarks and tagMarksFor bound the manifests of which is remembered that
	// they may be deleted: longer than any push takes from its manifest to its tag.
	maxTagMarks = 20_000
	tagMarksFor = time.Hour
	// maxTagsPerSet is what one request of the registry may set.
	maxTagsPerSet = 64
	// namedTags is how many tags a refusal names.
	namedTags = 3
	// stampShift is the catalogue's: milliseconds, and 65536 stamps within one.
	stampShift = 16
	// epochShift: the upper bits of a seq count recoveries and restores.
	epochShift = 48
)

// StrongTag is what a tag of a project with strong tags says.
type StrongTag struct {
	PID        identity.ProjectID
	Repository string // below the project
	Name       string
	Digest     string // of the manifest; empty: the tag was deleted
	Seq        uint64 // when it was set: goes up with every command that sets or deletes
	Stamp      uint64 // when it was set, as the catalogue has it
	Actor      string
	ACLIndex   uint64
	Taken      string // of a staged one: see take
}

// tagMark says that a manifest, or a whole repository, could be deleted.
type tagMark struct {
	pid        identity.ProjectID
	repository string
	digest     string // empty: all of the repository
	index      uint64 // raft index
	at         int64  // unix nanoseconds
}

// tagRows is part of View.
type tagRows struct {
	strong    *table.Tree[StrongTag] // by pid, repository, name; deleted ones too
	strongSeq *table.Tree[string]    // by pid, seq, key -> key in strong
	strongOf  *table.Tree[string]    // by pid, repository, digest, name -> name
	gone      *table.Tree[string]    // by seq, key -> key of a deleted one
	staged    *table.Tree[StrongTag] // of a switch under way
	marks     *table.Tree[tagMark]   // by pid, repository, digest
	markAge   *table.Tree[string]    // by index, key -> key in marks
	strongPID *table.Tree[int64]     // by pid -> project, of projects with strong tags or a switch under way
	taken     *table.Tree[string]    // by pid, repository, name -> pairs: see taken.go

	liveTags    int
	stagedTaken int    // rows of staged with more than the importer's vector: see stage
	marksFrom   uint64 // marks up to this raft index were let go
	tagsEpoch   uint64
}

func newTagRows() tagRows {
	return tagRows{
		strong: table.New[StrongTag](), strongSeq: table.New[string](), strongOf: table.New[string](), gone: table.New[string](),
		staged: table.New[StrongTag](), marks: table.New[tagMark](), markAge: table.New[string](), strongPID: table.New[int64](),
		taken: table.New[string](),
	}
}

func (r *tagRows) trees() []building {
	return []building{r.strong, r.strongSeq, r.strongOf, r.gone, r.staged, r.marks, r.markAge, r.strongPID, r.taken}
}

func repositoryKey(pid identity.ProjectID, repository string) []byte {
	return append(append(pid[:len(pid):len(pid)], repository...), 0)
}

func tagKey(pid identity.ProjectID, repository, name string) []byte {
	return append(repositoryKey(pid, repository), name...)
}

func (t StrongTag) key() []byte { return tagKey(t.PID, t.Repository, t.Name) }

func (t StrongTag) ofKey() []byte {
	return append(append(append(repositoryKey(t.PID, t.Repository), t.Digest...), 0), t.Name...)
}

func pidSeqKey(pid identity.ProjectID, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(pid[:len(pid):len(pid)], seq)
}

// seq is the present command's.
func (v *View) seq() uint64 { return v.tagsEpoch<<epochShift | v.index }

// dropTag takes a row out of all trees.
func (v *View) dropTag(t StrongTag) {
	key := t.key()
	v.strong, _, _ = v.strong.Delete(key)
	v.strongSeq, _, _ = v.strongSeq.Delete(append(pidSeqKey(t.PID, t.Seq), key...))
	if t.Digest == "" {
		v.gone, _, _ = v.gone.Delete(append(idKey(int64(t.Seq)), key...))
		return
	}
	v.strongOf, _, _ = v.strongOf.Delete(t.ofKey())
	v.liveTags--
}

// putTag puts a row in the place of the one before.
func (v *View) putTag(t StrongTag) {
	key := t.key()
	if old, ok := v.strong.Get(key); ok {
		v.dropTag(old)
	}
	v.strong, _, _ = v.strong.Insert(key, t)
	v.strongSeq, _, _ = v.strongSeq.Insert(append(pidSeqKey(t.PID, t.Seq), key...), string(key))
	if t.Digest == "" {
		v.gone, _, _ = v.gone.Insert(append(idKey(int64(t.Seq)), key...), string(key))
		return
	}
	v.strongOf, _, _ = v.strongOf.Insert(t.ofKey(), t.Name)
	v.liveTags++
}

// forgetGone lets the oldest deletions go. Who has not seen them by then has to
// compare all tags of the project: its base says so.
func (v *View) forgetGone() {
	before := uint64(max(v.now().Add(-goneTagsFor).UnixMilli(), 0)) << stampShift
	for v.gone.Len() > 0 {
		key := oldest(v.gone)
		t, _ := v.strong.Get([]byte(key))
		if v.gone.Len() <= maxGoneTags && t.Stamp >= before {
			return
		}
		v.dropTag(t)
		if p, ok := v.ProjectByPID(t.PID); ok && p.Tags.Base < t.Seq {
			p.Tags.Base = t.Seq
			v.putProject(p)
		}
	}
}

// strongProject finds a project whose tags the state decides now.
func (v *View) strongProject(id []byte) (Project, error) {
	pid, err := identity.ProjectIDFromBytes(id)
	if err != nil {
		return Project{}, refuse(command.CodeInvalid, "%s", err)
	}
	p, ok := v.ProjectByPID(pid)
	switch {
	case !ok || p.Deleted():
		return Project{}, refuse(command.CodeNotFound, "there is no project %s", pid)
	case p.Tags.Switching():
		return Project{}, refuse(command.CodeConflict, "the tags of project %s are switching from %s to %s: try again when that is done", p.Name, p.Tags.Mode, p.Tags.To)
	case p.Tags.Mode != StrongTags:
		return Project{}, refuse(command.CodeConflict, "the tags of project %s are not strong any more: try again", p.Name)
	}
	return p, nil
}

func checkRepository(s string) error {
	if s == "" || len(s) > maxName || strings.ContainsAny(s, "\x00 \n") {
		return refuse(command.CodeInvalid, "%q is not a repository's name", clip(s))
	}
	return nil
}

func checkTag(s string) error {
	if s == "" || len(s) > 128 || strings.ContainsAny(s, "\x00/ \n") {
		return refuse(command.CodeInvalid, "%q is not a tag", clip(s))
	}
	return nil
}

func checkDigest(s string) error {
	alg, enc, _ := strings.Cut(s, ":")
	want := map[string]int{"sha256": 64, "sha512": 128}[alg]
	if _, err := hex.DecodeString(enc); err != nil || want == 0 || len(enc) != want || strings.ToLower(enc) != enc {
		return refuse(command.CodeInvalid, "%q is not a digest: only sha256 and sha512 are supported", clip(s))
	}
	return nil
}

// tooManyTags refuses n more.
func (v *View) tooManyTags(n int) error {
	if v.liveTags+v.staged.Len()+n > MaxStrongTags {
		return refuse(command.CodeDenied, "the mesh has %d strong tags, and %d are possible in all: delete some, or let projects with many tags keep eventual ones", v.liveTags, MaxStrongTags)
	}
	return nil
}

func (v *View) tagsSet(actor string, m *command.TagsSet) (int64, error) {
	p, err := v.strongProject(m.GetProjectId())
	if err != nil {
		return 0, err
	}
	if err := checkRepository(m.GetRepository()); err != nil {
		return 0, err
	}
	if err := checkDigest(m.GetDigest()); err != nil {
		return 0, err
	}
	if n := len(m.GetTags()); n == 0 || n > maxTagsPerSet {
		return 0, refuse(command.CodeInvalid, "%d tags in one request: 1 to %d are possible", n, maxTagsPerSet)
	}
	if v.LetGo(p.PID, m.GetRepository(), m.GetDigest(), m.GetSince()) {
		return 0, refuse(command.CodeConflict, "the manifest %s of %s/%s was deleted meanwhile: push it again", m.GetDigest(), p.Name, m.GetRepository())
	}
	var set []StrongTag
	added := 0
	for _, said := range m.GetTags() {
		if err := checkTag(said.GetName()); err != nil {
			return 0, err
		}
		old, _ := v.strong.Get(tagKey(p.PID, m.GetRepository(), said.GetName()))
		switch {
		case old.Digest == m.GetDigest():
			continue // again is as good as once
		case old.Digest != said.GetDigest():
			return 0, v.lostTag(p, m.GetRepository(), said.GetName(), old)
		case old.Digest == "":
			added++
		}
		stamp := max(uint64(max(v.now().UnixMilli(), 0))<<stampShift, old.Stamp+1)
		set = append(set, StrongTag{PID: p.PID, Repository: m.GetRepository(), Name: said.GetName(), Digest: m.GetDigest(),
			Seq: v.seq(), Stamp: stamp, Actor: clip(actor), ACLIndex: m.GetAclIndex()})
	}
	if len(set) == 0 {
		return p.ID, nil
	}
	if err := v.tooManyTags(added); err != nil {
		return 0, err
	}
	for _, t := range set {
		v.putTag(t)
	}
	p.Tags.Seq = v.seq()
	v.putProject(p)
	return p.ID, nil
}

// lostTag refuses a change whose author saw something else.
func (v *View) lostTag(p Project, repository, name string, now StrongTag) error {
	if now.Digest == "" {
		return refuse(command.CodeConflict, "the tag %s of %s/%s was deleted meanwhile: look again and repeat", name, p.Name, repository)
	}
	return refuse(command.CodeConflict, "the tag %s of %s/%s was set meanwhile, to %s by %s: look again and repeat", name, p.Name, repository, now.Digest, now.Actor)
}

func (v *View) tagsDelete(actor string, m *command.TagsDelete) (int64, error) {
	p, err := v.strongProject(m.GetProjectId())
	if err != nil {
		return 0, err
	}
	if err := checkRepository(m.GetRepository()); err != nil {
		return 0, err
	}
	if m.GetDigest() != "" {
		if err := checkDigest(m.GetDigest()); err != nil {
			return 0, err
		}
	}
	switch {
	case m.GetTag() != "":
		old, ok := v.strong.Get(tagKey(p.PID, m.GetRepository(), m.GetTag()))
		if !ok || old.Digest == "" {
			return 0, refuse(command.CodeNotFound, "there is no tag %s in %s/%s", clip(m.GetTag()), p.Name, m.GetRepository())
		}
		if m.GetDigest() != "" && m.GetDigest() != old.Digest {
			return 0, v.lostTag(p, m.GetRepository(), m.GetTag(), old)
		}
		v.deleteTag(&p, old, actor)
	case m.GetDigest() != "":
		var names []string
		for name := range all(v.strongOf, append(append(repositoryKey(p.PID, m.GetRepository()), m.GetDigest()...), 0)) {
			if names = append(names, name); len(names) > namedTags {
				names[namedTags] = "…"
				break
			}
		}
		if len(names) > 0 {
			return 0, refuse(command.CodeConflict, "the tags of %s/%s name the manifest %s (%s): delete them first", p.Name, m.GetRepository(), m.GetDigest(), strings.Join(names, ", "))
		}
		v.mark(p.PID, m.GetRepository(), m.GetDigest())
	default: // of older nodes: it takes tags that nobody has seen
		for t := range all(v.strong, repositoryKey(p.PID, m.GetRepository())) {
			if t.Digest != "" {
				v.deleteTag(&p, t, actor)
			}
		}
		v.mark(p.PID, m.GetRepository(), "")
	}
	v.putProject(p)
	v.forgetGone()
	return p.ID, nil
}

func (v *View) deleteTag(p *Project, old StrongTag, actor string) {
	stamp := max(uint64(max(v.now().UnixMilli(), 0))<<stampShift, old.Stamp+1)
	v.putTag(StrongTag{PID: old.PID, Repository: old.Repository, Name: old.Name, Seq: v.seq(), Stamp: stamp, Actor: clip(actor)})
	p.Tags.Seq = v.seq()
}

// mark remembers that a manifest could be deleted.
func (v *View) mark(pid identity.ProjectID, repository, digest string) {
	v.putMark(tagMark{pid: pid, repository: repository, digest: digest, index: v.index, at: v.clock})
	before := v.now().Add(-tagMarksFor).UnixNano()
	for v.markAge.Len() > 0 {
		key := oldest(v.markAge)
		m, _ := v.marks.Get([]byte(key))
		if v.markAge.Len() <= maxTagMarks && m.at >= before {
			return
		}
		v.marks, _, _ = v.marks.Delete([]byte(key))
		v.markAge, _, _ = v.markAge.Delete(append(idKey(int64(m.index)), key...))
		v.marksFrom = max(v.marksFrom, m.index)
	}
}

func (v *View) putMark(m tagMark) {
	key := tagKey(m.pid, m.repository, m.digest)
	if old, ok := v.marks.Get(key); ok {
		v.markAge, _, _ = v.markAge.Delete(append(idKey(int64(old.index)), key...))
	}
	v.marks, _, _ = v.marks.Insert(key, m)
	v.markAge, _, _ = v.markAge.Insert(append(idKey(int64(m.index)), key...), string(key))
}

// LetGo reports whether a manifest may have been deleted by a command after the
// raft index given: then no tag may name it before it is put again.
func (v *View) LetGo(pid identity.ProjectID, repository, digest string, since uint64) bool {
	if since < v.marksFrom {
		return true // what is not remembered may have been
	}
	for _, d := range []string{digest, ""} {
		if m, ok := v.marks.Get(tagKey(pid, repository, d)); ok && m.index > since {
			return true
		}
	}
	return false
}

// declareTags gives all rows of all projects a new seq, above all that were ever
// given out: after a recovery or a restore others may have seen numbers that this
// state knows nothing of.
func (v *View) declareTags() {
	v.tagsEpoch++
	for id := range all(v.strongPID, nil) {
		p, ok := v.projects.Get(idKey(id))
		if !ok || p.Tags.Mode != StrongTags {
			continue
		}
		var rows []StrongTag
		for t := range all(v.strong, p.PID[:]) {
			rows = append(rows, t)
		}
		for _, t := range rows {
			if t.Digest == "" {
				v.dropTag(t) // the base covers it
				continue
			}
			t.Seq = v.seq()
			v.putTag(t)
		}
		p.Tags.Base, p.Tags.Seq = v.seq(), v.seq()
		v.putProject(p)
	}
}

// StrongTag gives what a tag says in a project with strong tags.
func (v *View) StrongTag(pid identity.ProjectID, repository, name string) (StrongTag, bool) {
	t, ok := v.strong.Get(tagKey(pid, repository, name))
	return t, ok && t.Digest != ""
}

// StrongTagsSince yields what of a project changed after a seq, in the order of
// seqs; deleted tags have no digest.
func (v *View) StrongTagsSince(pid identity.ProjectID, after uint64) func(yield func(StrongTag) bool) {
	return func(yield func(StrongTag) bool) {
		for _, key := range seekKeys(v.strongSeq, pid[:], pidSeqKey(pid, after+1)) {
			if t, ok := v.strong.Get([]byte(key)); ok && !yield(t) {
				return
			}
		}
	}
}

// StrongTagsOf counts a project's strong tags. It looks at each.
func (v *View) StrongTagsOf(pid identity.ProjectID) (n int) {
	for t := range all(v.strong, pid[:]) {
		if t.Digest != "" {
			n++
		}
	}
	return n
}

// StrongTags counts those of all projects.
func (v *View) StrongTags() int { return v.liveTags }

// StrongProjects yields the projects whose tags are strong, or switch.
func (v *View) StrongProjects() func(yield func(Project) bool) {
	return func(yield func(Project) bool) {
		for id := range all(v.strongPID, nil) {
			if p, ok := v.ProjectByID(id); ok && !yield(p) {
				return
			}
		}
	}
}

// oldest gives the first row of a tree that is not empty.
func oldest(t *table.Tree[string]) string {
	_, val, _ := t.First()
	return val
}

// seekKeys yields rows with the prefix from a key on.
func seekKeys(t *table.Tree[string], prefix, from []byte) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for key, val := range t.From(string(from)) {
			if !strings.HasPrefix(key, string(prefix)) || !yield(key, val) {
				return
			}
		}
	}
}

func (t StrongTag) row() *StrongTagRow {
	return &StrongTagRow{ProjectId: t.PID[:], Repository: t.Repository, Name: t.Name, Digest: t.Digest, Seq: t.Seq, Stamp: t.Stamp, Actor: t.Actor, AclIndex: t.ACLIndex,
		Taken: []byte(t.Taken)}
}

func (v *View) tagRecords(yield func(*Record) bool) bool {
	for t := range all(v.strong, nil) {
		if !yield(&Record{Row: &Record_StrongTag{t.row()}}) {
			return false
		}
	}
	for t := range all(v.staged, nil) {
		if !yield(&Record{Row: &Record_StagedTag{t.row()}}) {
			return false
		}
	}
	for m := range all(v.marks, nil) {
		if !yield(&Record{Row: &Record_TagMark{&TagMarkRow{ProjectId: m.pid[:], Repository: m.repository, Digest: m.digest, Index: m.index, UnixNs: m.at}}}) {
			return false
		}
	}
	return v.takenRecords(yield)
}

func (v *View) loadTag(row *StrongTagRow, staged bool) error {
	pid, err := identity.ProjectIDFromBytes(row.GetProjectId())
	if err != nil {
		return err
	}
	if _, ok := v.ProjectByPID(pid); !ok {
		return fmt.Errorf("the tag %s is of project %s, which is not there", row.GetName(), pid)
	}
	t := StrongTag{PID: pid, Repository: row.GetRepository(), Name: row.GetName(), Digest: row.GetDigest(), Seq: row.GetSeq(), Stamp: row.GetStamp(),
		Actor: row.GetActor(), ACLIndex: row.GetAclIndex(), Taken: string(row.GetTaken())}
	if staged {
		v.stage(t)
		return nil
	}
	v.putTag(t)
	return nil
}

func (v *View) loadMark(row *TagMarkRow) error {
	pid, err := identity.ProjectIDFromBytes(row.GetProjectId())
	if err != nil {
		return err
	}
	v.putMark(tagMark{pid: pid, repository: row.GetRepository(), digest: row.GetDigest(), index: row.GetIndex(), at: row.GetUnixNs()})
	return nil
}

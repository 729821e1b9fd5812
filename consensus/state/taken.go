package state

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// What a switch to strong tags ordered is what its importer's vector says
// (TagState.Seen), and of some tags more than that: of these it is kept here.

const (
	// MaxTakenPairs bounds the incarnations of one tag's row: of sites that wrote the
	// tag and were cut off in the midst of telling so.
	MaxTakenPairs = 64
	// maxTaken bounds the rows of all projects, and, apart from these, the tags that
	// are staged with such pairs. A row is about 200 bytes of everybody's memory as a
	// rule, and 1.2 KiB with all pairs: 24 MiB at most, and as much while switches are
	// under way. There is one for a tag that nobody has whole at the moment of its
	// switch. What finds no room is late: it is reported as lost when it turns up, and
	// kept for 30 days.
	maxTaken = 20_000
)

// pairs are incarnations, and a sequence number of each.
type pairs map[uint64]uint64

// readPairs reads what a command or a row says.
func readPairs(b []byte, most int) (pairs, error) {
	if len(b)%seenPair != 0 || len(b) > most*seenPair {
		return nil, fmt.Errorf("%d bytes are not %d pairs of incarnation and sequence number, or fewer", len(b), most)
	}
	out := pairs{}
	for c := range slices.Chunk(b, seenPair) {
		out[binary.BigEndian.Uint64(c)] = binary.BigEndian.Uint64(c[8:])
	}
	return out, nil
}

// row gives equal bytes for equal pairs: at most as many as a tag's row may have.
func (p pairs) row() string {
	incs := slices.Sorted(maps.Keys(p))
	var b []byte
	for _, inc := range incs[:min(len(incs), MaxTakenPairs)] {
		b = binary.BigEndian.AppendUint64(b, inc)
		b = binary.BigEndian.AppendUint64(b, p[inc])
	}
	return string(b)
}

// max adds what another one says.
func (p pairs) max(o pairs) {
	for inc, seq := range o {
		p[inc] = max(p[inc], seq)
	}
}

// Taken gives what the switches of a project to strong tags ordered of one tag
// besides TagState.Seen, in the same pairs; empty for most tags. It outlives the
// tag and the mode: what it speaks of may turn up at any time.
func (v *View) Taken(pid identity.ProjectID, repository, name string) []byte {
	row, _ := v.taken.Get(tagKey(pid, repository, name))
	return []byte(row)
}

// take puts what a switch ordered of its tags beside what those before it did, less
// what the importer's vector says for all tags by now.
func (v *View) take(pid identity.ProjectID, seen []byte, staged []StrongTag) error {
	covered, err := readPairs(seen, MaxSeen)
	if err != nil {
		return err
	}
	rows := map[string]pairs{}
	for key, row := range v.taken.From(string(pid[:])) {
		if !strings.HasPrefix(key, string(pid[:])) {
			break
		}
		if rows[key], err = readPairs([]byte(row), MaxTakenPairs); err != nil {
			return err
		}
	}
	for _, t := range staged {
		if len(t.Taken) == 0 {
			continue
		}
		more, err := readPairs([]byte(t.Taken), MaxTakenPairs)
		if err != nil {
			return err
		}
		if key := string(t.key()); rows[key] == nil {
			rows[key] = more
		} else {
			rows[key].max(more)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		p := rows[key]
		maps.DeleteFunc(p, func(inc, seq uint64) bool { return covered[inc] >= seq })
		_, there := v.taken.Get([]byte(key))
		switch {
		case len(p) == 0:
			v.taken, _, _ = v.taken.Delete([]byte(key))
		case there || v.taken.Len() < maxTaken:
			v.taken, _, _ = v.taken.Insert([]byte(key), p.row())
		}
	}
	return nil
}

// stage puts an imported tag beside the others of its switch. Beyond maxTaken tags of
// which more than the importer's vector was ordered it comes without that.
func (v *View) stage(t StrongTag) (again bool) {
	old, again := v.staged.Get(t.key())
	if old.Taken != "" {
		v.stagedTaken--
	}
	if t.Taken != "" {
		if v.stagedTaken < maxTaken {
			v.stagedTaken++
		} else {
			t.Taken = ""
		}
	}
	v.staged, _, _ = v.staged.Insert(t.key(), t)
	return again
}

// unstage is the end of stage.
func (v *View) unstage(t StrongTag) {
	v.staged, _, _ = v.staged.Delete(t.key())
	if t.Taken != "" {
		v.stagedTaken--
	}
}

// dropTaken forgets it all, once nobody asks any more.
func (v *View) dropTaken(pid identity.ProjectID) {
	var keys []string
	for key := range v.taken.From(string(pid[:])) {
		if !strings.HasPrefix(key, string(pid[:])) {
			break
		}
		keys = append(keys, key)
	}
	for _, key := range keys {
		v.taken, _, _ = v.taken.Delete([]byte(key))
	}
}

func (v *View) takenRecords(yield func(*Record) bool) bool {
	for key, row := range v.taken.From("") {
		repository, name, _ := strings.Cut(key[len(identity.ProjectID{}):], "\x00")
		if !yield(&Record{Row: &Record_TakenTag{&TakenTagRow{ProjectId: []byte(key[:len(identity.ProjectID{})]), Repository: repository, Name: name, Taken: []byte(row)}}}) {
			return false
		}
	}
	return true
}

func (v *View) loadTaken(row *TakenTagRow) error {
	pid, err := identity.ProjectIDFromBytes(row.GetProjectId())
	if err != nil {
		return err
	}
	if _, ok := v.ProjectByPID(pid); !ok {
		return fmt.Errorf("what was ordered of the tag %s is of project %s, which is not there", row.GetName(), pid)
	}
	p, err := readPairs(row.GetTaken(), MaxTakenPairs)
	if err != nil {
		return err
	}
	v.taken, _, _ = v.taken.Insert(tagKey(pid, row.GetRepository(), row.GetName()), p.row())
	return nil
}

// checkTaken refuses what is not of a tag.
func checkTaken(t *command.ImportedTag) error {
	if _, err := readPairs(t.GetTaken(), MaxTakenPairs); err != nil {
		return refuse(command.CodeInvalid, "what was ordered of the tag %s: %s", clip(t.GetName()), err)
	}
	return nil
}

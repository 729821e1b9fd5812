package state

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/portolan/portolan/consensus/command"
)

var update = flag.Bool("update", false, "rewrite the transcripts; understand the difference before you commit it: nodes of a mesh must come to the same state")

// TestTranscripts runs testdata/*.txt: commands, what the state answers, and the
// rows that each one changes. A transcript that changes means that a node of
// this version would come to another state than one of the last.
//
//	> ACTOR COMMAND fields as prototext     a command; +1h before ACTOR moves the clock
//	> again                                 the last command, with its request id
//	> restore                               go on from a snapshot of the state
//	# …                                     for people
//
// NODE(2) stands for a node's record, WITNESS(2) for that of a witness, ID(2) for its id, BYTES(7) for sixteen bytes,
// HASH(s) for a hash, SEALED(3) for a value sealed with version 3 of the mesh key,
// AT(1h) for a time after the first command's in nanoseconds.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts (%v)", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := transcript(t, string(want))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
			for i := range max(len(g), len(w)) {
				if i >= len(g) || i >= len(w) || g[i] != w[i] {
					t.Fatalf("%s:%d differs; run go test ./consensus/state -update and read the difference\ngot  %q\nwant %q", path, i+1, at(g, i), at(w, i))
				}
			}
		})
	}
}

func at(lines []string, i int) string {
	if i >= len(lines) {
		return "(the end)"
	}
	return lines[i]
}

func transcript(t *testing.T, text string) string {
	t.Helper()
	m := newMachine(t)
	var out strings.Builder
	var last *command.Envelope
	words := map[string]string{} // bytes as prototext has them -> the words for them
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		do, ok := strings.CutPrefix(line, "> ")
		if !ok {
			if line == "" || strings.HasPrefix(line, "#") {
				fmt.Fprintln(&out, line)
			}
			continue // an answer: written anew
		}
		fmt.Fprintln(&out, line)
		before := shown(m.View(), words)
		switch do {
		case "restore":
			var b strings.Builder
			if err := m.View().Snapshot(&b); err != nil {
				t.Fatal(err)
			}
			m.State = New()
			if err := m.Restore(strings.NewReader(b.String())); err != nil {
				t.Fatal(err)
			}
		case "again":
			m.index++
			answer(&out, m, last)
		default:
			last = m.parse(do, words)
			answer(&out, m, last)
		}
		after := shown(m.View(), words)
		for _, row := range before {
			if !slices.Contains(after, row) {
				fmt.Fprintln(&out, "  -", row)
			}
		}
		for _, row := range after {
			if !slices.Contains(before, row) {
				fmt.Fprintln(&out, "  +", row)
			}
		}
	}
	return out.String()
}

func answer(out *strings.Builder, m *machine, env *command.Envelope) {
	res, err := m.Apply(m.index, env)
	var refused *command.Error
	switch {
	case errors.As(err, &refused):
		fmt.Fprintf(out, "  %s: %s\n", refused.Code, refused.Message)
	case err != nil:
		fmt.Fprintf(out, "  the node stops: %s\n", err)
	default:
		fmt.Fprintf(out, "  made at %d, object %d\n", res.Index, res.ID)
	}
}

var macro = regexp.MustCompile(`\b(NODE|WITNESS|ID|BYTES|HASH|SEALED|AT)\(([^)]*)\)`)

// parse reads a command.
func (m *machine) parse(line string, words map[string]string) *command.Envelope {
	m.t.Helper()
	if clock, rest, ok := strings.Cut(line, " "); ok && strings.ContainsRune("+-", rune(clock[0])) {
		d, err := time.ParseDuration(clock)
		if err != nil {
			m.t.Fatalf("%s: %v", line, err)
		}
		m.now, line = m.now.Add(d), rest
	}
	actor, line, _ := strings.Cut(line, " ")
	name, fields, _ := strings.Cut(line, " ")
	fields = macro.ReplaceAllStringFunc(fields, func(word string) string { return m.expand(word, words) })
	kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("portolan.command.v1." + name))
	if err != nil {
		m.t.Fatalf("%s: %v", line, err)
	}
	body := kind.New().Interface()
	if err := prototext.Unmarshal([]byte(fields), body); err != nil {
		m.t.Fatalf("%s: %v", line, err)
	}
	env, err := command.New(actor, m.now, body)
	if err != nil {
		m.t.Fatalf("%s: %v", line, err)
	}
	m.index++
	env.RequestId = fmt.Appendf(nil, "request-%08d", m.index)
	return env
}

func (m *machine) expand(word string, words map[string]string) string {
	parts := macro.FindStringSubmatch(word)
	kind, arg := parts[1], parts[2]
	n, _ := strconv.Atoi(arg)
	bytesOf := func(b []byte, as string) string {
		text := strings.TrimPrefix(compact(&command.TokenCreate{SecretHash: b}), "secret_hash:")
		words[text] = as
		return text
	}
	switch kind {
	case "NODE", "WITNESS":
		rec := node(byte(n))
		if kind == "WITNESS" {
			rec.Witness, rec.StoreId, rec.DataPort = true, nil, 0
		}
		for what, b := range map[string][]byte{"id": rec.Id, "box": rec.BoxKey, "signature": rec.BoxSignature, "store": rec.StoreId} {
			if len(b) > 0 {
				bytesOf(b, fmt.Sprintf("%s-of(%d)", what, n))
			}
		}
		return "{" + compact(rec) + "}"
	case "ID":
		return bytesOf(node(byte(n)).Id, fmt.Sprintf("id-of(%d)", n))
	case "SEALED":
		return bytesOf(sealedWith(byte(n)), word)
	case "BYTES":
		return bytesOf(id16(byte(n)), word)
	case "HASH":
		return bytesOf(hash(arg), word)
	default: // AT
		d, err := time.ParseDuration(arg)
		if err != nil {
			m.t.Fatalf("%s: %v", word, err)
		}
		return strconv.FormatInt(t0.Add(d).UnixNano(), 10)
	}
}

// compact writes a message on one line, the same with every build: prototext
// itself puts in spaces by chance.
func compact(m proto.Message) string {
	b, err := prototext.MarshalOptions{}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// shown writes a view's rows, but for the answers that it remembers.
func shown(v *View, words map[string]string) []string {
	var out []string
	for rec := range v.records {
		if rec.GetRequest() != nil {
			continue
		}
		row := compact(rec)
		for text, word := range words {
			row = strings.ReplaceAll(row, text, word)
		}
		out = append(out, row)
	}
	return out
}

// FuzzApply: whatever is in a command, the state refuses it, applies it, or has
// the node stop before anything is changed; and two copies come to the same.
func FuzzApply(f *testing.F) {
	for _, body := range []proto.Message{meshCreate(), &command.UserCreate{Name: "ann", PasswordHash: "x"},
		&command.MemberSet{ProjectId: 3, UserId: 2, Role: 2, IfVersion: 1}, &command.NodeUpdate{Node: node(2)},
		&command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: []string{"*"}, AllSites: true}}, &command.TokenRevoke{Id: 7}, &command.VotersSet{Voters: 5},
		&command.NodeRemove{NodeId: node(2).Id, IfVersion: 1}, &command.SiteDrain{Id: 1, Drain: true}, &command.SiteRemove{Id: 1}, &command.SiteLeave{Id: 1},
		&command.SiteLabel{Id: 1, Set: []*command.Label{{Key: "region", Value: "eu"}}, Remove: []string{"x"}}, &command.SiteAway{Id: 1, Away: true},
		&command.BudgetSet{From: "ams", Mbit: 1}, &command.SitePause{Site: "ams", Paused: true},
		&command.ArtifactHold{ProjectId: id16(1), Repository: "app", Digest: "sha256:" + strings.Repeat("1", 64), Hold: command.ArtifactHold_HOLD_CANCEL}, &command.RulePause{RuleId: 5, Paused: true},
		&command.TagsMode{Id: 8, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode_TAG_MODE_STRONG}, &command.TagsDelete{ProjectId: id16(1), Repository: "app", Tag: "1"},
		&command.TagsSet{ProjectId: id16(1), Repository: "app", Digest: "sha256:" + strings.Repeat("1", 64), Tags: []*command.TagSaid{{Name: "1"}}}} {
		env, err := command.New("user:admin", t0, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int32(env.GetType()), env.GetMinLevel(), env.GetProposedUnixNs(), env.GetActor(), env.GetBody())
	}
	var snapshot bytes.Buffer
	if err := built(&testing.T{}).View().Snapshot(&snapshot); err != nil {
		f.Fatal(err)
	}
	base := func(t *testing.T) *State {
		t.Helper()
		s := New()
		if err := s.Restore(bytes.NewReader(snapshot.Bytes())); err != nil {
			t.Fatal(err)
		}
		return s
	}
	f.Fuzz(func(t *testing.T, kind int32, level uint32, at int64, actor string, body []byte) {
		if len(body) > 1<<12 {
			return
		}
		env := &command.Envelope{Type: command.Type(kind), MinLevel: level, RequestId: id16(99), ProposedUnixNs: at, Actor: actor, Body: body}
		a, b := base(t), base(t)
		before := rows(t, a.View())
		next := a.View().Index() + 1
		ra, ea := a.Apply(next, env)
		rb, eb := b.Apply(next, env)
		if ra != rb || fmt.Sprint(ea) != fmt.Sprint(eb) || rows(t, a.View()) != rows(t, b.View()) {
			t.Fatalf("two copies came to %+v, %v and %+v, %v", ra, ea, rb, eb)
		}
		var refused *command.Error
		if ea != nil && !errors.As(ea, &refused) && rows(t, a.View()) != before {
			t.Fatalf("the node stops with %v, and its state has changed", ea)
		}
	})
}

// Package layout keeps the conventions of the tree as tests: which packages may
// import what, which versions build together, that every package says what it
// is for, and that files stay small enough to hold in the head.
package layout

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

const module = "github.com/portolan/portolan"

type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	Imports      []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,GoFiles,TestGoFiles,XTestGoFiles", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module+"/")
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

// under reports whether p is the package tree or below it.
func under(p, tree string) bool { return p == tree || strings.HasPrefix(p, tree+"/") }

// fences: which third-party trees may be imported where, and why.
var fences = []struct{ imported, only, why string }{
	{"github.com/hashicorp/raft", "consensus", "raft is wired in one place; everyone else proposes commands and reads views"},
	{"github.com/hashicorp/raft-wal", "consensus", "the log store is raft's own"},
	{"github.com/hashicorp/raft-autopilot", "consensus", "who votes is decided in one place"},
	{"github.com/hashicorp/memberlist", "gossip", "gossip is hints; no one else may take it for truth"},
	{"filippo.io/age", "consensus/backup", "what opens a backup is said in one place"},
	{"github.com/libp2p/go-libp2p", "transfer/peer", "the scheduler knows the data plane by a small interface, so that it can be replaced"},
	{"github.com/dgraph-io/badger", "node/store/catalog", "typed keys live in one package, so that no two rooms write the same row"},
	{"github.com/distribution/distribution/v3/registry/storage", "node/store/blobs", "blobs and nothing else go to a bucket, by one interface"},
	{"github.com/aws/aws-sdk-go", "node/store/blobs/drivers", "the clouds' SDKs come in at one place"},
	{"github.com/Azure/azure-sdk-for-go", "node/store/blobs/drivers", "the clouds' SDKs come in at one place"},
	{"google.golang.org/api", "node/store/blobs/drivers", "the clouds' SDKs come in at one place"},
}

func TestFences_ThirdParty(t *testing.T) {
	for _, p := range packages(t) {
		if under(p.ImportPath, "test") {
			continue
		}
		for _, imp := range p.Imports {
			for _, f := range fences {
				if under(imp, f.imported) && !under(p.ImportPath, f.only) {
					t.Errorf("%s imports %s, which only %s may: %s", p.ImportPath, imp, f.only, f.why)
				}
			}
		}
	}
}

// may lists what of ours each tree may import (itself always).
var may = []struct {
	tree    string
	imports []string
	why     string
}{
	{"node/identity", nil, "a leaf: names and keys"},
	{"node/durable", nil, "a leaf: small files that are wholly there or not"},
	{"node/config", []string{"node/identity", "node/durable", "node/wire"}, "settings know no subsystem but how ports are named"},
	{"node/telemetry", nil, "a leaf: logs and metrics"},
	{"node/wire", []string{"node/identity"}, "the control listener knows keys, not what is said over it"},
	{"node/store", []string{"node/identity"}, "content stands alone: it is rebuilt without a control plane"},
	{"consensus", []string{"node/identity", "node/durable", "node/wire", "node/telemetry"}, "the control plane knows no content"},
	{"gossip", []string{"node/identity", "node/wire", "node/telemetry"}, "hints know nothing"},
	{"transfer", []string{"node/identity", "node/store", "node/wire", "consensus/state", "consensus/command"}, "content moves by read views; it does not speak raft"},
	{"registryapi", []string{"node/identity", "node/store", "node/wire/door", "consensus/state", "consensus/command"}, "HTTP reads views and proposes commands through interfaces that it declares"},
	{"node", []string{""}, "the only package that knows all"},
	{"cmd", []string{"node", "registryapi", "consensus/state", "consensus/command"}, "the binary builds nodes and speaks to the API"},
	{"test", []string{""}, "tests may import anything"},
}

func TestFences_Ours(t *testing.T) {
	for _, p := range packages(t) {
		rule := -1
		for i, m := range may {
			if under(p.ImportPath, m.tree) && (rule < 0 || len(m.tree) > len(may[rule].tree)) {
				rule = i
			}
		}
		if rule < 0 {
			t.Errorf("%s has no place in the layout", p.ImportPath)
			continue
		}
		m := may[rule]
	imports:
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok || under(ours, m.tree) {
				continue
			}
			for _, a := range m.imports {
				if a == "" || under(ours, a) {
					continue imports
				}
			}
			t.Errorf("%s imports %s, which %s may not: %s", p.ImportPath, ours, m.tree, m.why)
		}
	}
}

// TestState_IsDeterministic keeps clocks, chance and the outside world out of
// the state machine: every node must come to the same state.
func TestState_IsDeterministic(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "consensus/state" {
			continue
		}
		for _, imp := range p.Imports {
			switch imp {
			case "math/rand", "math/rand/v2", "crypto/rand", "os", "net", "net/http":
				t.Errorf("consensus/state imports %s: what it needs must come in the command", imp)
			}
		}
		clock := regexp.MustCompile(`time\.(Now|Since|Until|After|Tick|NewTimer)\(`)
		for _, f := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if m := clock.Find(src); m != nil {
				t.Errorf("consensus/state/%s calls %s): the time must come in the command", f, m)
			}
		}
	}
}

// TestDataPlane_IsKnownByItsInterface: only node wires the one that there is; its
// users know streams and hosts by the interfaces that they declare, so that another
// one can be put in its place. (Messages on streams are transfer/peer's for all.)
func TestDataPlane_IsKnownByItsInterface(t *testing.T) {
	itself := regexp.MustCompile(`\bpeer\.(Host|Stream|Config|New)\b`)
	for _, p := range packages(t) {
		if under(p.ImportPath, "transfer/peer") || p.ImportPath == "node" || under(p.ImportPath, "test") {
			continue
		}
		for _, f := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range strings.Split(string(src), "\n") {
				if code, _, _ := strings.Cut(line, "//"); itself.MatchString(code) {
					t.Errorf("%s/%s names the data plane itself: %s", p.ImportPath, f, strings.TrimSpace(line))
				}
			}
		}
	}
}

// TestPackages_SayWhatTheyAreFor: one package comment each.
func TestPackages_SayWhatTheyAreFor(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestTree_TopLevelIsFixed: rooms are added below these, not beside them.
func TestTree_TopLevelIsFixed(t *testing.T) {
	for _, p := range packages(t) {
		top, _, _ := strings.Cut(p.ImportPath, "/")
		switch top {
		case "cmd", "node", "consensus", "gossip", "transfer", "registryapi", "deploy", "test":
		default:
			t.Errorf("%s: %s is not one of the top-level folders", p.ImportPath, top)
		}
	}
}

// maxLines is what one can hold in the head; generated code is not read.
const maxLines = 700

func TestFiles_AreSmall(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range append(append(p.GoFiles, p.TestGoFiles...), p.XTestGoFiles...) {
			if strings.HasSuffix(f, ".pb.go") {
				continue
			}
			if n := lines(t, filepath.Join(p.Dir, f)); n > maxLines {
				t.Errorf("%s/%s has %d lines: give its second purpose a file of its own", p.ImportPath, f, n)
			}
		}
	}
}

func lines(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		n++
	}
	return n
}

// pinned is the set that builds together. raft 1.8.0 and memberlist 0.7.0 need
// go-metrics 0.7.0, which has lost the package that raft-wal 0.4.2 imports; a
// careless tidy then takes raft-wal 0.4.0, which lacks two correctness fixes.
var pinned = map[string]string{
	"github.com/hashicorp/raft":               "v1.7.3",
	"github.com/hashicorp/raft-wal":           "v0.4.2",
	"github.com/hashicorp/raft-autopilot":     "v0.3.0",
	"github.com/hashicorp/memberlist":         "v0.6.0",
	"github.com/hashicorp/go-metrics":         "v0.6.0",
	"github.com/libp2p/go-libp2p":             "v0.51.0",
	"github.com/dgraph-io/badger/v4":          "v4.9.6",
	"google.golang.org/grpc":                  "v1.85.0",
	"github.com/distribution/distribution/v3": "v3.1.2",
}

func TestModules_ThatBuildTogether(t *testing.T) {
	src, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", src, nil)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, r := range mod.Require {
		have[r.Mod.Path] = r.Mod.Version
	}
	for path, want := range pinned {
		if have[path] != want {
			t.Errorf("go.mod has %s %s, want %s: see the comment at pinned", path, have[path], want)
		}
	}
	if len(mod.Replace) > 0 {
		t.Error("go.mod has replace lines: go install would refuse the module")
	}
}

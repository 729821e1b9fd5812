package consensus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
)

// Survey is what a node that does not run has of the control state.
type Survey struct {
	Mesh       identity.MeshID
	Generation [16]byte
	Recoveries []state.Recovery // oldest first
	Site       string           // the node's own
	Term       uint64           // of its last entry
	Index      uint64
	ChangedAt  time.Time // the time of the last command, by its leader's clock
	Voter      bool      // this node's
	// Outdated is why this node takes part no more; empty: it does.
	Outdated string
	// Members are the mesh's nodes, by site; Had is what this node knows a voter
	// to have had, zero: nothing.
	Members []SurveyMember

	directory *directory
}

// SurveyMember is another node of the mesh.
type SurveyMember struct {
	ID               identity.NodeID
	Site             string
	Voter            bool
	HadTerm, HadLast uint64
}

// Inspect reads the raft directory of a node that does not run: dir is its
// Config.Dir. It reads every entry, so it finds what is damaged.
func Inspect(dir string, self identity.NodeID) (s *Survey, err error) {
	if err := finishSwap(dir); err != nil {
		return nil, err
	}
	// A copy is read: a log that is opened cuts off what it takes for the torn end
	// of a write, and what is damaged shall stay as it is for whoever repairs it.
	look := dir + lookSuffix
	if err := os.RemoveAll(look); err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(look)) }()
	if _, err := os.Lstat(filepath.Join(dir, walDirName)); err != nil {
		return nil, fmt.Errorf("consensus: %w", errors.Join(errNoLog, err))
	}
	if err := copyTree(dir, look); err != nil {
		return nil, fmt.Errorf("consensus: %s cannot be read: %w", dir, err)
	}
	d, err := readDirectory(look, false)
	if err != nil {
		return nil, fmt.Errorf("consensus: %s: %w", dir, err)
	}
	view := d.state.View()
	mesh := view.Mesh()
	if mesh.ID.IsZero() {
		return nil, fmt.Errorf("consensus: %s %w", dir, errNoState)
	}
	own, ok := view.Node(self)
	if !ok {
		return nil, fmt.Errorf("consensus: by the control state in %s this node is no member of the mesh: it was removed", dir)
	}
	memory, err := openMemory(look, func() []byte { return mesh.Generation[:] })
	if err != nil {
		return nil, err
	}
	s = &Survey{Mesh: mesh.ID, Generation: mesh.Generation, Recoveries: mesh.Recoveries, Site: own.Site, Term: d.last.term, Index: d.last.index, ChangedAt: view.Clock(), directory: d}
	var o Outdated
	if _, err := readMessage(filepath.Join(look, outdatedFile), &o); err != nil {
		return nil, err
	}
	s.Outdated = o.GetReason()
	voters, _ := split(d.config)
	for _, m := range view.Nodes() {
		votes := slices.Contains(voters, m.ID)
		if m.ID == self {
			s.Voter = votes
			continue
		}
		had := memory.of(m.ID)
		s.Members = append(s.Members, SurveyMember{ID: m.ID, Site: m.Site, Voter: votes, HadTerm: had.term, HadLast: had.index})
	}
	slices.SortFunc(s.Members, func(a, b SurveyMember) int { return strings.Compare(a.Site, b.Site) })
	return s, nil
}

// RecoverConfig is what [Recover] needs.
type RecoverConfig struct {
	// Dir is the node's raft directory; the node does not run, and the caller
	// holds what keeps it from being started.
	Dir string
	// Identity is the node's key.
	Identity *identity.Identity
	// Mesh is the mesh that the data directory says it belongs to.
	Mesh identity.MeshID
	// Lost are the sites that are lost for ever, as the operator says.
	Lost []string
	// Stopped: the operator has stopped all nodes that are not lost.
	Stopped bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Dial opens TCP connections; nil is a net.Dialer.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Progress is told what is being done; may be nil.
	Progress func(string)
}

// Recovered is what a recovery made.
type Recovered struct {
	Generation [16]byte
	Term       uint64
	Index      uint64 // of the first entry of the new generation
	Kept       string // where the directory that was replaced is
}

// lookSuffix is of the copy that Inspect reads.
const lookSuffix = ".look"

// askAliveFor is how long the others have to show that they live.
const askAliveFor = 5 * time.Second

// Recover makes this node the only voter of its mesh, in a new raft generation,
// with all that its log has. It is for a mesh that has lost the majority of its
// voters for ever, and refuses when that does not seem so.
func Recover(ctx context.Context, cfg RecoverConfig) (*Recovered, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	cfg.Progress("reading this node's control state")
	s, err := Inspect(cfg.Dir, cfg.Identity.ID)
	if err != nil {
		return nil, err
	}
	cfg.Progress(fmt.Sprintf("site %s has the control state up to term %d, entry %d, of %s", s.Site, s.Term, s.Index, s.ChangedAt.Format(time.RFC3339)))
	if s.Mesh != cfg.Mesh {
		return nil, fmt.Errorf("the data directory is of mesh %s, and the control state in it of mesh %s: put the right raft directory back", cfg.Mesh, s.Mesh)
	}
	if r, ok := s.recoveredHere(cfg); ok {
		return r, nil
	}
	if err := s.checkLost(cfg); err != nil {
		return nil, err
	}
	if err := cfg.askOthers(ctx, s); err != nil {
		return nil, err
	}
	cfg.Progress("writing a control state with this node as its only voter")
	return begin(cfg, s)
}

// recoveredHere finds a recovery that came to its end here, perhaps without
// telling so, and nothing has happened since: the same command again has nothing
// to do.
func (s *Survey) recoveredHere(cfg RecoverConfig) (*Recovered, bool) {
	k := len(s.Recoveries)
	if k == 0 || s.Recoveries[k-1].Node != cfg.Identity.ID || s.Recoveries[k-1].Index != s.Index {
		return nil, false
	}
	r := &Recovered{Generation: s.Generation, Term: s.Term, Index: s.Index}
	if kept, err := filepath.Glob(cfg.Dir + replacedMark + "*"); err == nil && len(kept) > 0 {
		r.Kept = slices.Max(kept) // by time
	}
	return r, true
}

// checkLost judges what the operator says.
func (s *Survey) checkLost(cfg RecoverConfig) error {
	sites := make(map[string]bool)
	for _, m := range s.Members {
		sites[m.Site] = true
	}
	for _, name := range cfg.Lost {
		switch {
		case name == s.Site:
			return fmt.Errorf("site %q is this one: it is not lost", name)
		case !sites[name]:
			return fmt.Errorf("the mesh has no other site %q: name the sites that are lost", name)
		}
	}
	voters, left := 0, 0
	if s.Voter {
		voters = 1
		if s.Outdated == "" { // else it is none, whether it is started or not
			left = 1
		}
	}
	var remaining []string
	for _, m := range s.Members {
		if !m.Voter {
			continue
		}
		voters++
		if !slices.Contains(cfg.Lost, m.Site) {
			left++
			remaining = append(remaining, m.Site)
		}
	}
	if left > voters/2 && voters == 1 && s.Voter {
		return errors.New("this node is the mesh's only voter: nothing is lost; start it, it leads alone")
	}
	if left > voters/2 {
		where := ""
		if len(remaining) > 0 {
			where = ", that is this one and " + strings.Join(remaining, ", ")
		}
		return fmt.Errorf("%d of the mesh's %d voters are not lost%s: start them, they are a majority; or name with --lost the sites that are lost for ever", left, voters, where)
	}
	own := position{s.Term, s.Index}
	for _, m := range s.Members {
		had := position{m.HadTerm, m.HadLast}
		if had.after(own) && !slices.Contains(cfg.Lost, m.Site) {
			return fmt.Errorf("site %s had more than this one (%s; here it is %s): recover there, or name it with --lost if it is lost too", m.Site, had, own)
		}
	}
	if !cfg.Stopped {
		return errors.New("a recovery is for a mesh whose other nodes are lost or stopped: stop them all, then say so with --i-have-stopped-all-others")
	}
	return nil
}

// askOthers refuses while others run, also those that are said to be lost.
func (c RecoverConfig) askOthers(ctx context.Context, s *Survey) error {
	ctx, cancel := context.WithTimeout(ctx, askAliveFor)
	defer cancel()
	view := s.directory.state.View()
	var wg sync.WaitGroup
	found := make([]error, len(s.Members))
	for i, m := range s.Members {
		row, _ := view.Node(m.ID)
		c.Progress("asking whether site " + m.Site + " runs, at " + controlAddr(row))
		wg.Go(func() { found[i] = c.askOne(ctx, view, row) })
	}
	wg.Wait()
	return errors.Join(found...)
}

func (c RecoverConfig) askOne(ctx context.Context, view *state.View, m state.Node) error {
	conn, err := dialControl(controlAddr(m), wire.Credentials(c.Identity, m.ID), c.Dial, askAliveFor)
	if err != nil {
		return nil //nolint:nilerr // it cannot be reached
	}
	defer func() { _ = conn.Close() }()
	rep, err := NewControlClient(conn).Ping(ctx, &PingRequest{Index: view.Index()})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return nil // it does not run, or nobody reaches it
	case codes.PermissionDenied:
		return fmt.Errorf("site %s answers, and says that this node is no member: it was removed; a new node joins with a token", m.Site)
	default:
		return fmt.Errorf("site %s answers: stop it, and recover the one that has most (%w)", m.Site, err)
	}
	if leader, err := identity.NodeIDFromBytes(rep.GetLeaderId()); err == nil && !leader.IsZero() {
		at := "node " + leader.Short()
		if l, ok := view.Node(leader); ok {
			at = "site " + l.Site
		}
		return fmt.Errorf("site %s answers, and the mesh has a leader, at %s: nothing is lost; start this node", m.Site, at)
	}
	return fmt.Errorf("site %s runs (its control state is at term %d, entry %d): stop it, and recover the one that has most", m.Site, rep.GetLastTerm(), rep.GetLastIndex())
}

// begin writes the new directory beside the old one, and swaps them.
func begin(cfg RecoverConfig, s *Survey) (*Recovered, error) {
	r := &Recovered{Term: max(s.directory.term, s.Term) + 1, Index: s.Index + 1}
	_, _ = rand.Read(r.Generation[:]) // never fails (Go 1.24)
	self := cfg.Identity.ID
	env, err := command.New("node:"+self.String(), cfg.Now(), &command.MeshRecovered{Generation: r.Generation[:], NodeId: self[:]})
	if err != nil {
		return nil, err
	}
	if _, err := s.directory.state.Apply(r.Index, env); err != nil {
		return nil, fmt.Errorf("consensus: recover: %w", err)
	}
	next := cfg.Dir + nextSuffix
	if err := os.RemoveAll(next); err != nil { // of an attempt that was cut short
		return nil, fmt.Errorf("consensus: recover: %w", err)
	}
	if err := writeDirectory(next, s.directory.state.View(), self, position{r.Term, r.Index}); err != nil {
		return nil, fmt.Errorf("consensus: recover: %w", err)
	}
	if r.Kept, err = swap(cfg.Dir, next, replacedMark, cfg.Now()); err != nil {
		return nil, fmt.Errorf("consensus: recover: %w", err)
	}
	return r, nil
}

// writeDirectory makes a raft directory that begins with a snapshot of the view
// at p, in p's term, with one voter. Nothing of an old log is in it: no entry of
// a generation that ended can meet one of the next.
func writeDirectory(dir string, view *state.View, voter identity.NodeID, p position) error {
	walDir := filepath.Join(dir, walDirName)
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return err
	}
	logs, err := wal.Open(walDir, wal.WithSegmentSize(walSegmentBytes), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return err
	}
	// No vote is remembered of this term: nobody can have asked for one in it.
	err = logs.SetUint64(keyCurrentTerm, p.term)
	if err = errors.Join(err, logs.Close()); err != nil {
		return err
	}
	snaps, err := openSnapshots(dir)
	if err != nil {
		return err
	}
	id := raft.ServerID(voter.String())
	addr, trans := raft.NewInmemTransport(raft.ServerAddress(id)) // only to write the address
	defer func() { _ = trans.Close() }()
	config := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: id, Address: addr}}}
	sink, err := snaps.Create(1, p.index, p.term, config, p.index, trans)
	if err != nil {
		return err
	}
	return snapshot{view}.Persist(sink)
}

// Follow makes a node that does not run give its control state up for that of
// another site: it sets its raft directory aside when it starts and comes back
// as a learner of whoever leads there.
func Follow(dir string, self identity.NodeID, site string) error {
	if done, err := followAnother(dir, self, site); done || err != nil {
		return err
	}
	s, err := Inspect(dir, self)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.Members, func(m SurveyMember) bool { return m.Site == site })
	if i < 0 {
		return fmt.Errorf("the mesh has no other site %q", site)
	}
	b, err := proto.Marshal(&Outdated{Reason: "site " + site + " is to be followed", Follow: s.Members[i].ID[:]})
	if err != nil {
		return fmt.Errorf("consensus: follow: %w", err)
	}
	// It must not vote again from the moment on that this is promised.
	if err := durable.WriteFile(filepath.Join(dir, outdatedFile), b); err != nil {
		return fmt.Errorf("consensus: follow: %w", err)
	}
	return nil
}

// followAnother is Follow for a directory that was begun anew already and has no
// control state yet: it changes to whom the node comes back.
func followAnother(dir string, self identity.NodeID, site string) (done bool, err error) {
	if err := finishSwap(dir); err != nil {
		return false, err
	}
	var r Returning
	found, err := readMessage(filepath.Join(dir, returningFile), &r)
	if err != nil || !found {
		return false, err
	}
	switch s, err := Inspect(dir, self); {
	case err == nil && s.Index > 0:
		return false, nil // it has begun to learn: what it has is set aside as well
	case err != nil && !errors.Is(err, errNoLog) && !errors.Is(err, errNoState):
		return false, err
	}
	i := slices.IndexFunc(r.GetBefore(), func(b *Before) bool { return b.GetSite() == site && string(b.GetNodeId()) != string(self[:]) })
	if i < 0 {
		return false, fmt.Errorf("the mesh has no other site %q", site)
	}
	r.Follow = r.GetBefore()[i].GetNodeId()
	var seeds Seeds
	if _, err := readMessage(filepath.Join(dir, seedsFile), &seeds); err != nil {
		return false, err
	}
	b, err := proto.Marshal(&r)
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, returningFile), b)
	}
	if err == nil { // whoever is followed says of which generation it is
		err = KeepSeeds(dir, seeds.GetProfile(), nil, seeds.GetNodes())
	}
	if err != nil {
		return false, fmt.Errorf("consensus: follow: %w", err)
	}
	return true, nil
}

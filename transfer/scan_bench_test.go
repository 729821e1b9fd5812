package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/test/bench/figures"
	syncer "github.com/portolan/portolan/transfer/sync"
)

var (
	artifacts = flag.Int("pass.artifacts", 20_000, "artifacts of BenchmarkFullPass")
	passOut   = flag.String("pass.out", "", "file that gets BenchmarkFullPass's figure, if it passes over as many artifacts as the target is for")
)

// A pass over passFull artifacts is to take seconds, no more than passWithin of them.
const (
	passFull   = 1_000_000
	passWithin = 10
)

// alone is an exchange with nobody.
type alone struct{ Exchange }

func (alone) OnApplied(func(identity.ProjectID, catalog.Applied))              {}
func (alone) OnPulled(func(identity.ProjectID))                                {}
func (alone) OnPeers(func())                                                   {}
func (alone) OnHolders(func())                                                 {}
func (alone) OnExplain(func(identity.ProjectID, string, digest.Digest) string) {}
func (alone) OnKeep(func(context.Context, identity.NodeID, identity.ProjectID, string, []syncer.Piece) (syncer.Kept, error)) {
}
func (alone) OnHold(func(context.Context, identity.NodeID, uint64) (syncer.Holds, error)) {}
func (alone) OnPin(func() (func(), time.Duration))                                        {}
func (alone) Expect(digest.Digest, string)                                                {}
func (alone) Peers() []syncer.PeerStatus                                                  { return nil }
func (alone) PullProject(context.Context, identity.ProjectID) ([]string, error)           { return nil, nil }

// BenchmarkFullPass compares all that a site should have with what it has: the
// artifacts of one project in 1000 repositories, each a manifest with a config, a
// layer of its own and two that its repository shares, all of them here. One in
// 10,000 lacks a layer, and must be found.
func BenchmarkFullPass(b *testing.B) {
	ctx := context.Background()
	dir := b.TempDir()
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		b.Fatal(err)
	}
	st, err := store.Open(ctx, store.Config{Dir: dir + "/store", Identity: id, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	pid := identity.NewProjectID()
	view, err := meshOfOne(id, st.ID(), pid)
	if err != nil {
		b.Fatal(err)
	}
	r, err := New(Config{Self: id.ID, Site: "fra", Store: st, State: view, Sync: alone{}, PushesTold: true})
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	lacking := fill(b, st.Catalog(), pid, *artifacts)
	b.Logf("%d artifacts made in %s", *artifacts, time.Since(begun).Round(time.Second))
	machine, err := figures.Now()
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		r.queue = newQueue(time.Now)
		if err := r.scanProject(ctx, pid, min(runtime.GOMAXPROCS(0), scanWorkers)); err != nil {
			b.Fatal(err)
		}
		if ready, _, _ := r.queue.lengths(); ready != lacking {
			b.Fatalf("%d artifacts found wanting, want %d", ready, lacking)
		}
	}
	b.StopTimer()
	if err := savePass(b, machine); err != nil {
		b.Fatal(err)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	b.ReportMetric(float64(*artifacts)*float64(b.N)/b.Elapsed().Seconds(), "artifacts/s")
	b.ReportMetric(float64(mem.HeapInuse)/(1<<20), "heap-MiB")
}

// savePass writes a run's figure to the file of the results: the mean of its passes.
func savePass(b *testing.B, machine figures.Machine) error {
	if *passOut == "" || *artifacts != passFull {
		return nil
	}
	others, err := machine.Others()
	if err != nil {
		return err
	}
	row := figures.New("a full pass of the rules over 1,000,000 artifacts: time", b.Elapsed().Seconds()/float64(b.N), "s", figures.AtMost(passWithin),
		fmt.Sprintf("the mean of %d passes on %d cores", b.N, runtime.NumCPU()))
	row.Others = &others
	return figures.Save(*passOut, []figures.Row{row})
}

// fill writes n artifacts and says how many lack a layer.
func fill(b *testing.B, c *catalog.Catalog, pid identity.ProjectID, n int) (lacking int) {
	b.Helper()
	name := func(kind byte, i int) digest.Digest {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte{kind}, uint64(i)))
		return digest.NewDigestFromBytes(digest.SHA256, sum[:])
	}
	const repositories, lacksEach = 1000, 10_000
	ctx := context.Background()
	var g errgroup.Group
	g.SetLimit(256) // they share a sync of the disk
	put := func(d digest.Digest, size int64) {
		g.Go(func() error {
			return c.PutBlob(ctx, catalog.BlobRow{Digest: d, Size: size, Class: catalog.Placed, For: pid}, nil, nil)
		})
	}
	for i := range 2 * repositories {
		put(name('s', i), 30<<20)
	}
	for i := range n {
		config, layer := name('c', i), name('l', i)
		put(config, 7000)
		if i%lacksEach == lacksEach/2 {
			lacking++
		} else {
			put(layer, 3<<20)
		}
		repo := i % repositories
		body := fmt.Appendf(nil, `{"n":%d}`, i)
		g.Go(func() error {
			_, err := c.PutManifest(ctx, catalog.Put{PID: pid, Repo: fmt.Sprintf("app%04d", repo), Digest: digest.FromBytes(body),
				MediaType: "application/vnd.oci.image.manifest.v1+json", Size: int64(len(body)), Bytes: body, Home: "nyc", Actor: "user:admin",
				Tags: []string{fmt.Sprint("v", i)},
				Refs: []catalog.Ref{{Digest: config, Size: 7000, Kind: catalog.RefBlob}, {Digest: name('s', 2*repo), Size: 30 << 20, Kind: catalog.RefBlob},
					{Digest: name('s', 2*repo+1), Size: 30 << 20, Kind: catalog.RefBlob}, {Digest: layer, Size: 3 << 20, Kind: catalog.RefBlob}}})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return lacking
}

// meshOfOne is a mesh with this site, a project, and a rule that wants versions
// of it everywhere.
func meshOfOne(id *identity.Identity, storeID identity.StoreID, pid identity.ProjectID) (*state.State, error) {
	s := state.New()
	box, sig := id.BoxKey()
	mesh, library := identity.NewMeshID(), identity.NewProjectID()
	node := &command.Node{Id: id.ID[:], BoxKey: box[:], BoxSignature: sig, StoreId: storeID[:], Host: "127.0.0.1", GossipPort: 7946,
		ControlPort: 7947, DataPort: 7948, RegistryUrl: "http://127.0.0.1:5000", Level: command.Level, Version: "test"}
	for i, body := range []command.Body{
		&command.MeshCreate{MeshId: mesh[:], Site: "fra", Node: node, RaftGeneration: make([]byte, 16), LibraryProjectId: library[:], AdminPasswordHash: "x"},
		&command.ProjectCreate{ProjectId: pid[:], Name: "prod"},
		&command.RuleCreate{Rule: &command.Rule{Name: "versions", Projects: []string{"prod"}, Tags: []string{"v*"}, AllSites: true}},
	} {
		env, err := command.New("user:admin", time.Now(), body)
		if err != nil {
			return nil, err
		}
		if _, err := s.Apply(uint64(i+1), env); err != nil {
			return nil, err
		}
	}
	return s, nil
}

package catalog

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/test/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.ServeWorker(servePower)
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
		return
	}
	if dir := os.Getenv(crashExchangeEnv); dir != "" {
		crashExchangeChild(dir)
		return
	}
	if dir := os.Getenv(crashFirstEnv); dir != "" {
		crashFirstChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// openMemory opens a catalogue without a disk.
func openMemory(t testing.TB, opts Options) *Catalog {
	t.Helper()
	opts.InMemory = true
	return openAt(t, "", opts)
}

func openAt(t testing.TB, dir string, opts Options) *Catalog {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = quiet
	}
	c, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// body makes a manifest's bytes that differ by name.
func body(name string) []byte { return []byte("{" + name + strings.Repeat(" ", 400) + "}") }

// put makes a small manifest's Put.
func put(pid identity.ProjectID, repo, name string, tags ...string) Put {
	b := body(name)
	return Put{
		PID: pid, Repo: repo, Digest: digest.FromBytes(b), MediaType: "application/vnd.oci.image.manifest.v1+json",
		Size: int64(len(b)), Bytes: b, Tags: tags, Home: "fra", Actor: "ann", ACLIndex: 7,
		Refs: []Ref{{Digest: digest.FromString("config of " + name), Size: 11, Kind: RefBlob}, {Digest: digest.FromString("base layer"), Size: 1 << 20, Kind: RefBlob}},
	}
}

func mustPut(t testing.TB, c *Catalog, p Put) Dot {
	t.Helper()
	dot, err := c.PutManifest(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return dot
}

// pull brings to all that from has, as an exchange does.
func pull(ctx context.Context, to, from *Catalog, pid identity.ProjectID) (Applied, error) {
	var sum Applied
	x, err := to.Receive(pid)
	if err != nil {
		return sum, err
	}
	defer x.End()
	v, err := from.Delta(ctx, pid, x.Since(), 1<<20, func(p Page) error {
		a, err := x.Page(ctx, p)
		sum.Entries += a.Entries
		sum.Changed += a.Changed
		sum.NewManifests = append(sum.NewManifests, a.NewManifests...)
		sum.MissingBytes = append(sum.MissingBytes, a.MissingBytes...)
		return err
	})
	if err != nil {
		return sum, err
	}
	return sum, x.Adopt(ctx, v)
}

func mustPull(t testing.TB, to, from *Catalog, pid identity.ProjectID) Applied {
	t.Helper()
	a, err := pull(t.Context(), to, from, pid)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// restart makes the next write begin a new incarnation, as a process start does.
func (c *Catalog) restart(ctx context.Context) error {
	return c.submit(ctx, func(*batch) error { c.inc = 0; return nil })
}

// clock is a wall clock that tests set.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newClock() *clock { return &clock{time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)} }

func tagName(i int) string { return fmt.Sprintf("v%06d", i) }

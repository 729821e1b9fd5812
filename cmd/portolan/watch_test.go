package main

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/mesh"
)

// transfers answers what comes to the site: each time it is asked a piece more of
// one blob is there.
type transfers struct{ asked chan int }

func newTransfers() *transfers { return &transfers{make(chan int, 100)} }

func (x *transfers) answer() mesh.Transfers {
	n := len(x.asked) + 1
	select {
	case x.asked <- n:
	default:
	}
	d := digest.FromString("layer")
	return mesh.Transfers{Running: 1, Artifacts: []mesh.Transfer{}, Links: []mesh.Link{}, Suspects: []mesh.Suspect{},
		Disputes: []mesh.Dispute{{Digest: d, At: time.Unix(1, 0), Roots: []mesh.SignedRoot{{Node: "n1", Site: "nyc", Root: "aa", False: true}, {Node: "n2", Site: "sgp", Root: "bb"}}}},
		Blobs:    []mesh.Progress{{Digest: d, Done: int64(n) * 10, Total: 1000, From: "nyc", Clients: 1, ETA: float64(100 - n)}},
		Behind:   []mesh.Behind{{Site: "nyc", Seconds: 4, Bytes: 1000 - int64(n)*10, Artifacts: 1, Total: 1000, ETA: float64(100 - n), Catalogue: 1}}}
}

// await waits until there were so many questions: all before were shown then, as
// the command asks one after the other.
func (x *transfers) await(ts *testscript.TestScript, n string) {
	want, err := strconv.Atoi(n)
	ts.Check(err)
	end := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(x.asked) < want {
		select {
		case <-tick.C:
		case <-end:
			ts.Fatalf("asked %d times in a minute, not %d", len(x.asked), want)
		}
	}
}

// conflict has another site, which knows nothing of this one's tag, push it, and
// this one hear of that.
func conflict(ts *testscript.TestScript, _ bool, args []string) {
	w := world(ts)
	repo, tag, _ := strings.Cut(args[0], ":")
	project, repo, _ := strings.Cut(repo, "/")
	dir, ctx := ts.MkAbs("other"), context.Background()
	other, err := catalog.Open(dir, catalog.Options{Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(time.Second) }})
	ts.Check(err)
	defer func() { ts.Check(other.Close()) }()
	w.mesh.Push(other, project, repo, args[1], tag)
	p, _ := w.mesh.State.View().Project(project)
	x, err := w.catalog.Receive(p.PID)
	ts.Check(err)
	defer x.End()
	v, err := other.Delta(ctx, p.PID, x.Since(), 1<<20, func(p catalog.Page) error {
		_, err := x.Page(ctx, p)
		return err
	})
	ts.Check(err)
	ts.Check(x.Adopt(ctx, v))
}

package catalog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// crashFirstEnv makes the test binary a child in which an empty catalogue takes in all
// of another one, until it is killed.
const crashFirstEnv = "PORTOLAN_TEST_CRASH_FIRST_DIR"

// firstManifests are in several repositories; each has a tag, and some a child.
const firstManifests = 600

// crashFirstChild pulls as transfer/sync does: while a page becomes durable the next one
// is checked. It says each page that is durable.
func crashFirstChild(dir string) {
	err := func() error {
		ctx := context.Background()
		from, err := Open(filepath.Join(dir, "from"), Options{Logger: quiet})
		if err != nil {
			return err
		}
		to, err := Open(filepath.Join(dir, "to"), Options{Logger: quiet})
		if err != nil {
			return err
		}
		x, err := to.Receive(crashPID)
		if err != nil {
			return err
		}
		checked := make(chan Checked)
		var taking errgroup.Group
		taking.Go(func() error {
			for p := range checked {
				if _, err := x.Take(ctx, p); err != nil {
					return err
				}
				fmt.Println("page")
			}
			return nil
		})
		end, err := from.Delta(ctx, crashPID, x.Since(), 4<<10, func(p Page) error {
			c, err := x.Check(p)
			if err == nil {
				checked <- c
			}
			return err
		})
		close(checked)
		if err == nil {
			err = taking.Wait()
		}
		if err == nil {
			err = x.Adopt(ctx, end)
		}
		return err
	}()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("all")
	select {} // until it is killed
}

// TestCrash_InAFirstExchange kills a site again and again while it takes a project in
// for the first time. Whatever it has then is as the sender has it, it does not claim to
// have seen anything, and what is left comes with the next exchange.
func TestCrash_InAFirstExchange(t *testing.T) {
	dir := t.TempDir()
	fill(t, filepath.Join(dir, "from"))
	for run := 0; ; run++ {
		atPage := 1 + 40*run // one later each time, so that it ends
		whole := false
		runUntilKilled(t, []string{crashFirstEnv + "=" + dir}, func(n int, line string) (kill bool) {
			whole = whole || line == "all"
			if !whole && line != "page" {
				t.Errorf("child said %q", line)
			}
			return n == atPage || whole
		})
		afterCrash(t, dir, whole)
		if whole && run < 3 {
			t.Fatalf("all came in %d pages: none of them was a crash", atPage)
		}
		if whole || t.Failed() {
			return
		}
		if run == 50 {
			t.Fatal("the exchange never ended")
		}
	}
}

func fill(t *testing.T, dir string) {
	t.Helper()
	c, err := Open(dir, Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	for i := range firstManifests {
		repo, name := fmt.Sprint("app", i%7), fmt.Sprint(i)
		p := put(crashPID, repo, name, "t"+name)
		if i%5 == 0 { // an index, and a tag that moved
			child := put(crashPID, repo, "child of "+name)
			mustPut(t, c, child)
			p.Refs = append(p.Refs, Ref{Digest: child.Digest, Size: child.Size, Kind: RefManifest})
			p.Tags = append(p.Tags, "latest")
		}
		mustPut(t, c, p)
		if i%11 == 0 { // a tombstone
			if err := c.DeleteTag(t.Context(), crashPID, repo, "t"+name, "ann", 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// afterCrash looks at what a start finds.
func afterCrash(t *testing.T, dir string, whole bool) {
	t.Helper()
	from, err := Open(filepath.Join(dir, "from"), Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := Open(filepath.Join(dir, "to"), Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if err := auditDerived(to, crashPID); err != nil {
		t.Error(err)
	}
	stored, counted, err := to.Recount(t.Context(), crashPID)
	if err != nil || stored != counted {
		t.Errorf("check %v, recounted %v, %v", stored, counted, err)
	}
	if whole {
		same(t, crashPID, from, to)
		equalVectors(t, crashPID, from, to)
		return
	}
	if v, err := to.Vector(crashPID); err != nil || len(v) > 0 {
		t.Errorf("claims to have seen %v, %v", v, err)
	}
	if counted.Count == 0 {
		t.Error("nothing of the durable pages is there")
	}
	repos, err := to.Repositories(crashPID, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range repos {
		tags, err := to.Tags(crashPID, repo, "", maxRows)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			here, err := to.Tag(crashPID, repo, tag)
			if err != nil {
				t.Fatal(err)
			}
			there, err := from.Tag(crashPID, repo, tag)
			if err != nil || there.Digest != here.Digest {
				t.Errorf("tag %s of %s says %s, at the sender %s, %v", tag, repo, here.Digest, there.Digest, err)
			}
			readable(t, to, repo, here.Digest)
		}
	}
}

// readable follows a manifest and its children.
func readable(t *testing.T, c *Catalog, repo string, d digest.Digest) {
	t.Helper()
	_, refs, err := c.ManifestWithRefs(crashPID, repo, d)
	if err != nil {
		t.Errorf("manifest %s of %s is named and not there: %v", d, repo, err)
	}
	if b, ok, err := c.ContentIn(crashPID, d); err != nil || !ok || digest.FromBytes(b) != d {
		t.Errorf("manifest %s of %s: its bytes are not there: %v, %v", d, repo, ok, err)
	}
	for _, r := range refs {
		if r.Kind == RefManifest {
			readable(t, c, repo, r.Digest)
		}
	}
}

package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/faultfs"
)

// powerRequest is what a test asks its worker, which alone touches the files.
type powerRequest struct {
	Dir  string
	Said []powerSaid // what must hold; nil: run the script

	Beside bool // run writeBesideLogs instead
}

// powerSaid is an edit: before it was asked for, and when it was acknowledged.
type powerSaid struct {
	Tag  string
	Name string // of the manifest, "" for a delete
	Done bool
	Dot  string
}

func servePower(raw json.RawMessage) error {
	var r powerRequest
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	c, err := Open(filepath.Join(r.Dir, "catalog"), Options{Logger: quiet})
	if err != nil {
		return fmt.Errorf("open what survived: %w", err)
	}
	switch {
	case r.Beside:
		err = writeBesideLogs(c, r.Dir)
	case r.Said == nil:
		err = powerScript(c, r.Dir)
	default:
		err = checkPower(c, r.Said)
	}
	return errors.Join(err, c.Close())
}

// powerScript overwrites and deletes tags, manifests and a repository, and an
// index with its children.
func powerScript(c *Catalog, dir string) error {
	mark, err := os.OpenFile(filepath.Join(dir, faultfs.MarkFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = mark.Close() }()
	ctx := context.Background()
	edit := func(s powerSaid, do func() (Dot, error)) error {
		say := func() error {
			b, err := json.Marshal(s)
			if err != nil {
				return err
			}
			_, err = mark.Write(b)
			return err
		}
		if err := say(); err != nil {
			return err
		}
		dot, err := do()
		if err != nil {
			return err
		}
		s.Done, s.Dot = true, dot.String()
		return say()
	}
	set := func(tag, name string) error {
		return edit(powerSaid{Tag: tag, Name: name}, func() (Dot, error) {
			return c.PutManifest(ctx, put(crashPID, "app", name, tag))
		})
	}
	untag := func(tag string) error {
		return edit(powerSaid{Tag: tag}, func() (Dot, error) { return c.deleteTag(ctx, crashPID, "app", tag, "") })
	}
	return errors.Join(
		set("a", "one"), set("b", "two"), set("a", "three"), untag("b"), set("b", "one"),
		edit(powerSaid{Tag: "a"}, func() (Dot, error) {
			return c.deleteManifest(ctx, crashPID, "app", put(crashPID, "app", "three").Digest)
		}),
		set("c", "two"), set("a", "four"), untag("c"), c.DropVector(ctx, crashPID), set("d", "five"),
	)
}

// checkPower: each tag says what was acknowledged last, or what was asked for
// since then; rows follow from entries; no dot is given twice.
func checkPower(c *Catalog, all []powerSaid) error {
	may := map[string][]string{}
	dots := map[string]bool{}
	for _, s := range all {
		switch {
		case s.Done:
			may[s.Tag] = []string{s.Name}
			dots[s.Dot] = true
		case may[s.Tag] == nil:
			may[s.Tag] = []string{"", s.Name}
		default:
			may[s.Tag] = append(may[s.Tag], s.Name)
		}
	}
	for tag, names := range may {
		info, err := c.Tag(crashPID, "app", tag)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		ok := false
		for _, name := range names {
			ok = ok || name == "" && err != nil || name != "" && err == nil && info.Digest == digest.FromBytes(body(name))
		}
		if !ok {
			return fmt.Errorf("tag %s says %q (%s), none of %q", tag, info.Digest, fmt.Sprint(err), names)
		}
		if err == nil {
			if b, ok, err := c.Content(info.Digest); err != nil || !ok || digest.FromBytes(b) != info.Digest {
				return fmt.Errorf("tag %s names a manifest without bytes: %w", tag, err)
			}
		}
	}
	stored, counted, err := c.Recount(context.Background(), crashPID)
	if err != nil || stored != counted {
		return fmt.Errorf("check %v, recounted %v: %w", stored, counted, err)
	}
	if err := auditDerived(c, crashPID); err != nil {
		return err
	}
	dot, err := c.PutManifest(context.Background(), put(crashPID, "app", "after", "after"))
	if err == nil && dots[dot.String()] {
		err = fmt.Errorf("dot %s was given twice", dot)
	}
	return errors.Join(err, auditDerived(c, crashPID))
}

// TestPowerCut cuts the power after each operation of a script, see faultfs.
func TestPowerCut(t *testing.T) {
	faultfs.Require(t)
	workers := []*faultfs.Worker{faultfs.StartWorker(t), faultfs.StartWorker(t)}
	seed := faultfs.Seed(t)
	atMost := 200
	if testing.Short() {
		atMost = 40
	}
	f := faultfs.New(faultfs.Empty())
	f.NamedBySync = []string{".sst"} // see DESIGN.md
	dir, unmount := f.MountT(t)
	if err := workers[0].Do(powerRequest{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	unmount()
	faultfs.Explore(t, f, seed, atMost, workers, func(w *faultfs.Worker, c faultfs.Crashed) error {
		r := powerRequest{Said: []powerSaid{}}
		for _, m := range c.Marks {
			var s powerSaid
			if err := json.Unmarshal([]byte(m.Text), &s); err != nil {
				return err
			}
			r.Said = append(r.Said, s)
		}
		dir, unmount := faultfs.New(c.Image).MountT(t)
		defer unmount()
		r.Dir = dir
		return w.Do(r)
	})
}

// writeBesideLogs makes files in the database's directory, as Badger does when
// it begins a log, and edits after each.
func writeBesideLogs(c *Catalog, dir string) error {
	for i := range besideLogs {
		if err := os.WriteFile(filepath.Join(dir, "catalog", fmt.Sprint("new", i)), nil, 0o600); err != nil {
			return err
		}
		if _, err := c.PutManifest(context.Background(), put(crashPID, "app", fmt.Sprint(i), "tag")); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, faultfs.MarkFile), []byte("acknowledged"), 0); err != nil {
			return err
		}
	}
	return nil
}

const besideLogs = 4

// TestCommit_SyncsNewNames: a commit makes the name of a log durable that was
// begun before it, also on a file system whose times are coarse.
func TestCommit_SyncsNewNames(t *testing.T) {
	faultfs.Require(t)
	f := faultfs.New(faultfs.Empty())
	f.Tick = dirTick
	dir, unmount := f.MountT(t)
	if err := faultfs.StartWorker(t).Do(powerRequest{Dir: dir, Beside: true}); err != nil {
		t.Fatal(err)
	}
	unmount()
	marks := f.Marks()
	if len(marks) != besideLogs {
		t.Fatalf("%d acknowledgements", len(marks))
	}
	for i, m := range marks {
		dir, unmount := faultfs.New(f.Crash(m.At, 0)).MountT(t)
		if _, err := os.Stat(filepath.Join(dir, "catalog", fmt.Sprint("new", i))); err != nil {
			t.Errorf("a power cut after commit %d took a name from before it: %v", i, err)
		}
		unmount()
	}
}

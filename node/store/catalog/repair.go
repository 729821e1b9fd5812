package catalog

import (
	"bytes"
	"context"
	"fmt"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// DropVector is for a store that lost rows: it forgets what it has seen of a
// project, so that peers send everything again, makes what follows from entries
// (index, derived rows, counts) fit those that are left, and takes their sum.
//
// What no peer has seen stays, and no vector says so any more. So a new incarnation
// begins, as the old one's numbers no longer stand for what is here, and numbers of it
// are given to nothing, for the reason that Announce gives: the first so that no vector
// covers this one's before a pull, the second when the index is whole again.
//
// It is several transactions. The vector goes first, so that nobody is told that
// this store has what it lost; the sum comes last, so that after a crash in
// between the loss is still to be seen.
func (c *Catalog) DropVector(ctx context.Context, pid identity.ProjectID) error {
	for _, step := range []func(context.Context, identity.ProjectID) error{c.forgetAndNumber, c.dropLeftovers, c.restoreDerived, c.resum} {
		if err := step(ctx, pid); err != nil {
			return fmt.Errorf("catalog: drop the vector of project %s: %w", pid, err)
		}
	}
	return nil
}

func (c *Catalog) resum(ctx context.Context, pid identity.ProjectID) error {
	return c.submitAs(ctx, jobReceived, func(b *batch) error { return b.resum(ctx, pid) })
}

func (c *Catalog) forget(ctx context.Context, pid identity.ProjectID) error {
	return c.submitAs(ctx, jobReceived, func(b *batch) error { return b.forget(pid) })
}

func (c *Catalog) forgetAndNumber(ctx context.Context, pid identity.ProjectID) error {
	return c.submitAs(ctx, jobReceived, func(b *batch) error {
		if err := b.forget(pid); err != nil {
			return err
		}
		b.number(pid)
		return nil
	})
}

func (b *batch) forget(pid identity.ProjectID) error {
	here, err := b.vector(tabVector, pid)
	if err != nil {
		return err
	}
	for inc := range here {
		b.del(keyVector(tabVector, pid, inc))
	}
	// What was purged goes with it: a lost row and a purged tombstone look the
	// same, and a push must not be taken for deleted because its row was lost.
	purged, err := b.vector(tabPurged, pid)
	if err != nil {
		return err
	}
	for inc := range purged {
		b.del(keyVector(tabPurged, pid, inc))
	}
	b.c.inc = 0
	b.touch(pid, change{})
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	delete(b.c.announced, pid)
	return nil
}

// leftover reports whether a row of a project belongs to an entry that is gone.
func (r reader) leftover(pid identity.ProjectID, key []byte) (bool, error) {
	var k entryKey
	indexed, goneMs := Dot{}, int64(0)
	ok := false
	switch key[0] {
	case tabIndex:
		indexed, k, ok = parseIndex(key)
	case tabLive:
		_, k, ok = parsePIDEntry(key)
	case tabTomb:
		goneMs, k, ok = parseTomb(key)
	case tabReferrer:
		repo, _, _, d, good := parseReferrer(key)
		raw, err := rawDigest(d)
		k, ok = entryKey{kindManifest, repo, string(raw)}, good && err == nil
	case tabTagOf:
		k.kind = kindTag
		k.repo, _, k.name, ok = parseTagOf(key)
	case tabRef:
		_, of, repo, parent, good := parseRef(key)
		if good && of != pid {
			return false, nil
		}
		raw, err := rawDigest(parent)
		k, ok = entryKey{kindManifest, repo, string(raw)}, good && err == nil
	}
	if !ok {
		return false, damaged(key)
	}
	e, err := r.entry(pid, k)
	switch {
	case err != nil:
		return false, err
	case e == nil:
		return true, nil
	case key[0] == tabIndex:
		return e.ctx[indexed.Inc] != indexed.Seq, nil
	case key[0] == tabTomb:
		return e.live() || e.goneMs != goneMs, nil
	case key[0] == tabTagOf:
		return false, nil // a tombstone may still keep losers
	}
	return !e.live(), nil
}

// dropLeftovers removes rows that follow from entries which are gone: a delta
// could not be walked over them, and what they keep would never be let go.
func (c *Catalog) dropLeftovers(ctx context.Context, pid identity.ProjectID) error {
	var gone [][]byte
	flush := func() error {
		defer func() { gone = gone[:0] }()
		return c.submitAs(ctx, jobFreeing, func(b *batch) error {
			for _, key := range gone {
				// An exchange may have brought the entry back meanwhile.
				if out, err := b.leftover(pid, key); err != nil {
					return err
				} else if out {
					b.del(key)
				}
			}
			return nil
		})
	}
	for _, prefix := range [][]byte{
		prefixPID(tabIndex, pid), prefixPID(tabLive, pid), prefixPID(tabTomb, pid), prefixPID(tabReferrer, pid), prefixPID(tabTagOf, pid), {tabRef},
	} {
		err := c.walk(prefix, false, func(r reader, key, _ []byte) (func() error, error) {
			out, err := r.leftover(pid, key)
			return func() error {
				if !out {
					return nil
				}
				if gone = append(gone, key); len(gone) < maxExpired/5 {
					return nil
				}
				return flush()
			}, err
		})
		if err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return flush()
}

// restoreDerived writes rows that should follow from entries and are not there.
func (c *Catalog) restoreDerived(ctx context.Context, pid identity.ProjectID) error {
	return c.walk(prefixPID(tabEntry, pid), false, func(r reader, key, _ []byte) (func() error, error) {
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return nil, damaged(key)
		}
		lacks, err := r.lacks(pid, k)
		return func() error {
			if len(lacks) == 0 {
				return nil
			}
			return c.submitAs(ctx, jobReceived, func(b *batch) error {
				lacks, err := b.lacks(pid, k)
				for _, row := range lacks {
					b.set(row.key, row.value)
				}
				return err
			})
		}, err
	})
}

// lacks gives the rows of an entry that are not there or not right.
func (r reader) lacks(pid identity.ProjectID, k entryKey) ([]row, error) {
	e, err := r.entry(pid, k)
	if err != nil || e == nil {
		return nil, err
	}
	rows, err := derive(pid, k, e)
	if err != nil {
		return nil, err
	}
	for inc, seq := range e.ctx {
		rows = append(rows, row{key: keyIndex(pid, Dot{inc, seq}, k)})
	}
	var out []row
	for _, row := range rows {
		v, err := r.get(row.key)
		if err != nil {
			return nil, err
		}
		if v == nil || !bytes.Equal(v, row.value) {
			out = append(out, row)
		}
	}
	return out, nil
}

// resum counts the entries of each repository and sums up those of the project.
func (b *batch) resum(ctx context.Context, pid identity.ProjectID) error {
	count := map[string]*rowpb.Repository{}
	err := b.scan(prefixPID(tabLive, pid), nil, false, func(key, _ []byte) (bool, error) {
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return false, damaged(key)
		}
		pb := count[k.repo]
		if pb == nil {
			pb = &rowpb.Repository{}
			count[k.repo] = pb
		}
		if k.kind == kindManifest {
			pb.Manifests++
		} else {
			pb.Tags++
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	err = b.scan(prefixPID(tabRepo, pid), nil, false, func(key, _ []byte) (bool, error) {
		if repo, ok := parseRepo(key); !ok || count[repo] == nil {
			b.del(key)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for repo, pb := range count {
		before := &rowpb.Repository{}
		if ok, err := b.message(keyRepo(pid, repo), before); err == nil && ok && before.Tags == pb.Tags && before.Manifests == pb.Manifests {
			continue
		}
		if err := b.setMessage(keyRepo(pid, repo), pb); err != nil {
			return err
		}
	}
	sum, err := b.recount(ctx, pid)
	if err != nil {
		return err
	}
	b.number(pid) // who saw the first one may have missed entries without index rows
	b.touch(pid, change{local: true})
	b.setSums(pid, sum)
	return nil
}

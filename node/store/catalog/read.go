package catalog

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// maxRows bounds one listing, whatever the caller asks for.
const maxRows = 10_000

func bound(n int) int { return min(max(n, 0), maxRows) }

// Tag gives what a tag says: one point read.
func (c *Catalog) Tag(pid identity.ProjectID, repo, tag string) (TagInfo, error) {
	var info TagInfo
	if err := errors.Join(checkName("repository", repo), checkName("tag", tag)); err != nil {
		return info, err
	}
	err := c.view(func(r reader) error {
		e, err := r.entry(pid, entryKey{kindTag, repo, tag})
		if err != nil {
			return err
		}
		w := e.winner()
		if w == nil {
			return ErrNotFound
		}
		info = TagInfo{Name: tag, Digest: digestOrEmpty(tagDigest(w)), Stamp: w.stamp, Dot: w.dot, Actor: w.actor, At: stampTime(w.stamp)}
		for _, s := range e.losing() {
			if d := digestOrEmpty(tagDigest(s)); !slices.Contains(info.Conflicts, d) {
				info.Conflicts = append(info.Conflicts, d)
			}
		}
		return nil
	})
	return info, err
}

// Manifest gives a manifest's entry: one point read.
func (c *Catalog) Manifest(pid identity.ProjectID, repo string, d digest.Digest) (ManifestInfo, error) {
	var info ManifestInfo
	err := c.manifestEntry(pid, repo, d, func(k entryKey, e *entry) (err error) {
		info, err = infoFromEntry(k, e)
		return err
	})
	return info, err
}

// Refs gives what a live manifest refers to.
func (c *Catalog) Refs(pid identity.ProjectID, repo string, d digest.Digest) ([]Ref, error) {
	_, refs, err := c.ManifestWithRefs(pid, repo, d)
	return refs, err
}

// ManifestWithRefs gives a manifest's entry and what it refers to: one point read.
func (c *Catalog) ManifestWithRefs(pid identity.ProjectID, repo string, d digest.Digest) (ManifestInfo, []Ref, error) {
	var info ManifestInfo
	var refs []Ref
	err := c.manifestEntry(pid, repo, d, func(k entryKey, e *entry) error {
		i, v, err := readManifest(k, e)
		if err != nil {
			return err
		}
		info, refs = i, refsOf(v)
		return nil
	})
	return info, refs, err
}

func (c *Catalog) manifestEntry(pid identity.ProjectID, repo string, d digest.Digest, fn func(entryKey, *entry) error) error {
	raw, err := rawInRepo(repo, d)
	if err != nil {
		return err
	}
	return c.view(func(r reader) error {
		k := entryKey{kindManifest, repo, string(raw)}
		e, err := r.entry(pid, k)
		if err != nil {
			return err
		}
		return fn(k, e)
	})
}

// Tags gives up to n tags in order of their bytes, from the first behind after.
func (c *Catalog) Tags(pid identity.ProjectID, repo, after string, n int) ([]string, error) {
	out := []string{}
	err := c.live(pid, kindTag, repo, after, n, func(_ reader, k entryKey) error { out = append(out, k.name); return nil })
	return out, err
}

// Manifests gives up to n manifests in order of their digests, from the first
// behind after ("": from the beginning).
func (c *Catalog) Manifests(pid identity.ProjectID, repo string, after digest.Digest, n int) ([]ManifestInfo, error) {
	start, err := afterDigest(after)
	if err != nil {
		return nil, err
	}
	out := []ManifestInfo{}
	err = c.live(pid, kindManifest, repo, start, n, func(r reader, k entryKey) error {
		return r.info(pid, k, &out)
	})
	return out, err
}

// rawInRepo checks a repository, so that its name can't reach into another's
// keys, and gives the raw digest.
func rawInRepo(repo string, d digest.Digest) ([]byte, error) {
	if err := checkName("repository", repo); err != nil {
		return nil, err
	}
	return rawDigest(d)
}

func afterDigest(d digest.Digest) (string, error) {
	if d == "" {
		return "", nil
	}
	raw, err := rawDigest(d)
	return string(raw), err
}

// info adds the entry of a live manifest to a list.
func (r reader) info(pid identity.ProjectID, k entryKey, to *[]ManifestInfo) error {
	e, err := r.entry(pid, k)
	if err != nil {
		return err
	}
	info, err := infoFromEntry(k, e)
	if err != nil {
		return fmt.Errorf("catalog: manifest %s of %s is listed but: %w", k.digest(), k.repo, err)
	}
	*to = append(*to, info)
	return nil
}

// live walks the live entries of a repository.
func (c *Catalog) live(pid identity.ProjectID, kd kind, repo, after string, n int, fn func(reader, entryKey) error) error {
	if err := checkName("repository", repo); err != nil {
		return err
	}
	if n = bound(n); n == 0 {
		return nil
	}
	prefix := prefixRepo(tabLive, pid, kd, repo)
	return c.view(func(r reader) error {
		left := n
		return r.scan(prefix, behind(prefix, after), false, func(key, _ []byte) (bool, error) {
			_, k, ok := parsePIDEntry(key)
			if !ok {
				return false, damaged(key)
			}
			left--
			return left > 0, fn(r, k)
		})
	})
}

// behind gives the first possible key after prefix+after; all keys if after is
// empty.
func behind(prefix []byte, after string) []byte {
	if after == "" {
		return prefix
	}
	return append(append(slices.Clone(prefix), after...), 0)
}

// Repositories gives up to n repositories that have tags or manifests, in order
// of their bytes, from the first behind after.
func (c *Catalog) Repositories(pid identity.ProjectID, after string, n int) ([]string, error) {
	out := []string{}
	if n = bound(n); n == 0 {
		return out, nil
	}
	prefix := prefixPID(tabRepo, pid)
	err := c.view(func(r reader) error {
		return r.scan(prefix, behind(prefix, after), false, func(key, _ []byte) (bool, error) {
			repo, ok := parseRepo(key)
			if !ok {
				return false, damaged(key)
			}
			out = append(out, repo)
			return len(out) < n, nil
		})
	})
	return out, err
}

// Repository counts a repository's live entries: one point read. A repository
// without any is ErrNotFound.
func (c *Catalog) Repository(pid identity.ProjectID, repo string) (RepositoryInfo, error) {
	pb := &rowpb.Repository{}
	err := c.view(func(r reader) error {
		ok, err := r.message(keyRepo(pid, repo), pb)
		if err == nil && !ok {
			err = ErrNotFound
		}
		return err
	})
	return RepositoryInfo{Name: repo, Tags: pb.Tags, Manifests: pb.Manifests}, err
}

// TagsOf gives up to n tags that say the digest, in order of their bytes.
func (c *Catalog) TagsOf(pid identity.ProjectID, repo string, d digest.Digest, n int) ([]string, error) {
	out := []string{}
	if n = bound(n); n == 0 {
		return out, nil
	}
	err := c.EachTagOf(pid, repo, d, func(tag string) bool {
		out = append(out, tag)
		return len(out) < n
	})
	return out, err
}

// EachTagOf calls fn for all tags that say the digest, in order of their bytes, until
// it returns false. fn must not call the catalogue.
func (c *Catalog) EachTagOf(pid identity.ProjectID, repo string, d digest.Digest, fn func(tag string) (more bool)) error {
	raw, err := rawInRepo(repo, d)
	if err != nil {
		return err
	}
	return c.view(func(r reader) error {
		return r.scan(prefixTagOf(pid, repo, raw), nil, true, func(key, value []byte) (bool, error) {
			_, _, tag, ok := parseTagOf(key)
			if !ok || len(value) == 0 {
				return false, damaged(key)
			}
			return value[0] != roleWinner || fn(tag), nil
		})
	})
}

// Referrers gives up to n manifests that have the subject, and the artifact type
// unless that is "", in order of their digests, from the first behind after.
func (c *Catalog) Referrers(pid identity.ProjectID, repo string, subject digest.Digest, artifactType string, after digest.Digest, n int) ([]ManifestInfo, error) {
	out := []ManifestInfo{}
	raw, err := rawInRepo(repo, subject)
	if err != nil {
		return nil, err
	}
	start, err := afterDigest(after)
	if err != nil {
		return nil, err
	}
	possible := artifactType == "" || checkName("artifact type", artifactType) == nil
	if n = bound(n); n == 0 || !possible {
		return out, nil
	}
	prefix := prefixReferrer(pid, repo, raw, artifactType)
	err = c.view(func(r reader) error {
		return r.scan(prefix, behind(prefix, start), false, func(key, _ []byte) (bool, error) {
			_, _, _, d, ok := parseReferrer(key)
			if !ok {
				return false, damaged(key)
			}
			raw, err := rawDigest(d)
			if err != nil {
				return false, err
			}
			err = r.info(pid, entryKey{kindManifest, repo, string(raw)}, &out)
			return len(out) < n, err
		})
	})
	return out, err
}

// walkChunk is how many rows a walk reads before it lets its snapshot go.
const walkChunk = 256

// EachManifest calls fn for every live manifest of a project. It holds no
// snapshot meanwhile: fn may be slow and may call the catalogue, and sees what
// is there when its turn comes.
func (c *Catalog) EachManifest(pid identity.ProjectID, fn func(ManifestInfo) error) error {
	prefix := append(prefixPID(tabLive, pid), byte(kindManifest))
	return c.walk(prefix, false, func(r reader, key, _ []byte) (func() error, error) {
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return nil, damaged(key)
		}
		var infos []ManifestInfo
		if err := r.info(pid, k, &infos); err != nil {
			return nil, err
		}
		return func() error { return fn(infos[0]) }, nil
	})
}

// walk reads the rows of a prefix in chunks. read runs on the snapshot, what it
// returns runs without one.
func (c *Catalog) walk(prefix []byte, values bool, read func(r reader, key, value []byte) (func() error, error)) error {
	start := prefix
	for start != nil {
		var calls []func() error
		from := start
		start = nil
		err := c.view(func(r reader) error {
			return r.scan(prefix, from, values, func(key, value []byte) (bool, error) {
				if len(calls) == walkChunk {
					start = key
					return false, nil
				}
				call, err := read(r, key, value)
				calls = append(calls, call)
				return true, err
			})
		})
		if err != nil {
			return err
		}
		for _, call := range calls {
			if err := call(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Linked reports whether a digest may be read in a repository: a live manifest
// of it is the digest or refers to it, or a lease gives it to the repository.
func (c *Catalog) Linked(pid identity.ProjectID, repo string, d digest.Digest) (size int64, ok bool, err error) {
	raw, err := rawInRepo(repo, d)
	if err != nil {
		return 0, false, err
	}
	err = c.view(func(r reader) error {
		size, ok, err = c.linked(r, raw, pid, repo)
		return err
	})
	return size, ok, err
}

func (c *Catalog) linked(r reader, raw []byte, pid identity.ProjectID, repo string) (size int64, ok bool, err error) {
	size, ok, err = r.firstRef(prefixRefRepo(raw, pid, repo), nil)
	if err != nil || ok {
		return size, ok, err
	}
	value, err := r.get(keyLease(raw, pid, repo))
	if err != nil || value == nil {
		return 0, false, err
	}
	return c.leaseHolds(value)
}

// LinkedIn is Linked for any repository of the project, and says which.
func (c *Catalog) LinkedIn(pid identity.ProjectID, d digest.Digest) (repo string, size int64, ok bool, err error) {
	raw, err := rawDigest(d)
	if err != nil {
		return "", 0, false, err
	}
	err = c.view(func(r reader) error {
		repo, size, ok, err = c.linkedIn(r, raw, pid)
		return err
	})
	return repo, size, ok, err
}

func (c *Catalog) linkedIn(r reader, raw []byte, pid identity.ProjectID) (repo string, size int64, ok bool, err error) {
	size, ok, err = r.firstRef(prefixRefPID(raw, pid), &repo)
	if err != nil || ok {
		return repo, size, ok, err
	}
	err = r.scan(prefixLease(raw, pid), nil, true, func(key, value []byte) (bool, error) {
		_, _, name, good := parseLease(key)
		if !good {
			return false, damaged(key)
		}
		size, ok, err = c.leaseHolds(value)
		repo = name
		return !ok, err
	})
	if !ok {
		repo = ""
	}
	return repo, size, ok, err
}

// firstRef gives the first reference row of a prefix.
func (r reader) firstRef(prefix []byte, repo *string) (size int64, ok bool, err error) {
	err = r.scan(prefix, nil, true, func(key, value []byte) (bool, error) {
		_, size, ok = parseRefValue(value)
		if _, _, name, _, good := parseRef(key); !good || !ok {
			return false, damaged(key)
		} else if repo != nil {
			*repo = name
		}
		return false, nil
	})
	return size, ok, err
}

func (c *Catalog) leaseHolds(value []byte) (size int64, ok bool, err error) {
	pb := &rowpb.Lease{}
	if err := proto.Unmarshal(value, pb); err != nil {
		return 0, false, fmt.Errorf("%w: lease: %w", ErrInvalid, err)
	}
	return pb.Size, pb.UntilUnixMs >= c.now().UnixMilli(), nil
}

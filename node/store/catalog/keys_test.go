package catalog

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// FuzzKeys builds every key from fuzzed fields and reads it back.
func FuzzKeys(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), "app/web", "v1.0", "a/b", uint64(1), uint64(2))
	f.Add([]byte{0xff}, "a", "latest", "", uint64(1)<<63, ^uint64(0))
	f.Fuzz(func(t *testing.T, id []byte, repo, tag, typ string, inc, seq uint64) {
		if checkName("repository", repo) != nil || checkName("tag", tag) != nil || (typ != "" && checkName("type", typ) != nil) {
			t.Skip()
		}
		var pid identity.ProjectID
		var store identity.StoreID
		copy(pid[:], id)
		copy(store[:], tag)
		for _, d := range []digest.Digest{digest.FromString(tag), digest.SHA512.FromString(repo)} {
			raw, err := rawDigest(d)
			if err != nil {
				t.Fatal(err)
			}
			name, parent := string(raw), digest.FromString("parent"+tag)
			rawParent, _ := rawDigest(parent)
			dot := Dot{identity.Incarnation(inc), seq}
			for _, k := range []entryKey{{kindTag, repo, tag}, {kindManifest, repo, name}} {
				if p, got, ok := parsePIDEntry(keyEntry(pid, k)); !ok || p != pid || got != k {
					t.Errorf("entry %v: %v %v", k, got, ok)
				}
				if p, got, ok := parsePIDEntry(keyLive(pid, k)); !ok || p != pid || got != k {
					t.Errorf("live %v: %v %v", k, got, ok)
				}
				if g, got, ok := parseIndex(keyIndex(pid, dot, k)); !ok || g != dot || got != k {
					t.Errorf("index %v: %v %v %v", k, g, got, ok)
				}
				if ms, got, ok := parseTomb(keyTomb(pid, int64(seq>>1), k)); !ok || ms != int64(seq>>1) || got != k {
					t.Errorf("tombstone %v: %v %v %v", k, ms, got, ok)
				}
				if got, ok := parseEntrySuffix(k.suffix()); !ok || got != k {
					t.Errorf("suffix %v: %v %v", k, got, ok)
				}
			}
			if got, ok := parseVector(keyVector(tabVector, pid, dot.Inc)); !ok || got != dot.Inc {
				t.Errorf("vector: %v %v", got, ok)
			}
			if got, ok := parseCheck(keyCheck(pid)); !ok || got != pid {
				t.Errorf("check: %v %v", got, ok)
			}
			if got, ok := parseRepo(keyRepo(pid, repo)); !ok || got != repo {
				t.Errorf("repo: %q %v", got, ok)
			}
			if gd, gp, gr, gpar, ok := parseRef(keyRef(raw, pid, repo, string(rawParent))); !ok || gd != d || gp != pid || gr != repo || gpar != parent {
				t.Errorf("ref: %v %v %q %v %v", gd, gp, gr, gpar, ok)
			}
			if gr, gs, gt, gd, ok := parseReferrer(keyReferrer(pid, repo, rawParent, typ, name)); !ok || gr != repo || gs != parent || gt != typ || gd != d {
				t.Errorf("referrer: %q %v %q %v %v", gr, gs, gt, gd, ok)
			}
			if gr, gd, gt, ok := parseTagOf(keyTagOf(pid, repo, raw, tag)); !ok || gr != repo || gd != d || gt != tag {
				t.Errorf("tag of: %q %v %q %v", gr, gd, gt, ok)
			}
			if gd, ok := parseDigestKey(prefixDigest(tabBlob, raw)); !ok || gd != d {
				t.Errorf("blob: %v %v", gd, ok)
			}
			if gd, gp, gr, ok := parseLease(keyLease(raw, pid, repo)); !ok || gd != d || gp != pid || gr != repo {
				t.Errorf("lease: %v %v %q %v", gd, gp, gr, ok)
			}
			if p, ok := parsePin(keyPin(raw, store, pid, dot)); !ok || p.Digest != d || p.For != store || p.PID != pid || p.Dot != dot {
				t.Errorf("pin: %+v %v", p, ok)
			}
			if n, ok := parseFeed(keyFeed(seq)); !ok || n != seq {
				t.Errorf("feed: %v %v", n, ok)
			}
			if got, ok := parseStore(keyStore(store)); !ok || got != store {
				t.Errorf("store: %v %v", got, ok)
			}
			if got, ok := parseInc(keyInc(dot.Inc)); !ok || got != dot.Inc {
				t.Errorf("incarnation: %v %v", got, ok)
			}
			if gp, gd, gr, gt, ok := parseConflict(keyConflict(pid, dot, repo, tag)); !ok || gp != pid || gd != dot || gr != repo || gt != tag {
				t.Errorf("conflict: %v %v %q %q %v", gp, gd, gr, gt, ok)
			}
		}
	})
}

// FuzzParsers feeds every parser arbitrary bytes: none may panic, and an entry
// suffix that is accepted is written back the same.
func FuzzParsers(f *testing.F) {
	f.Add([]byte{})
	f.Add(keyEntry(identity.ProjectID{}, entryKey{kindTag, "a", "b"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = parsePIDEntry(b)
		_, _, _ = parseIndex(b)
		_, _ = parseVector(b)
		_, _ = parseCheck(b)
		_, _ = parseRepo(b)
		_, _, _, _, _ = parseRef(b)
		_, _, _, _, _ = parseReferrer(b)
		_, _, _, _ = parseTagOf(b)
		_, _ = parseDigestKey(b)
		_, _, _, _ = parseLease(b)
		_, _ = parsePin(b)
		_, _ = parseFeed(b)
		_, _ = parseStore(b)
		_, _ = parseInc(b)
		_, _, _, _, _ = parseConflict(b)
		_, _ = parsePage(b)
		var v Vector
		_ = v.UnmarshalBinary(b)
		if k, ok := parseEntrySuffix(b); ok && !bytes.Equal(k.suffix(), b) {
			t.Errorf("%x became %x", b, k.suffix())
		}
	})
}

func TestKeys_SortAsNames(t *testing.T) {
	names := []string{"a", "a-b", "a.b", "a/b", "a/b/c", "a0", "aa", "b"}
	var pid identity.ProjectID
	for _, build := range []func(string) []byte{
		func(s string) []byte { return keyRepo(pid, s) },
		func(s string) []byte { return keyLive(pid, entryKey{kindTag, s, "x"}) },
	} {
		var keys [][]byte
		for _, n := range names {
			keys = append(keys, build(n))
		}
		if !slices.IsSortedFunc(keys, bytes.Compare) {
			t.Errorf("keys are not in the order of %v", names)
		}
	}
}

func TestRawDigest_RefusesWhatIsNoDigest(t *testing.T) {
	for _, d := range []digest.Digest{"", "sha256:", "sha256:00", "md5:d41d8cd98f00b204e9800998ecf8427e", digest.FromString("x") + "00",
		"sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
		digest.SHA384.FromString("x"), digest.SHA512.FromString("x") + "00", "sha512:" + digest.Digest(digest.FromString("x").Encoded()),
		"sha512:" + digest.Digest(strings.ToUpper(digest.SHA512.FromString("x").Encoded())),
		"sha256:" + digest.Digest(digest.SHA512.FromString("x").Encoded())} {
		if _, err := rawDigest(d); err == nil {
			t.Errorf("%q was taken", d)
		}
	}
}

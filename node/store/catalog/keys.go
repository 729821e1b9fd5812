package catalog

import (
	"bytes"
	_ "crypto/sha512" // go-digest takes the algorithms that are linked in, and no others
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// All keys of the database are built and read in this file. A key is a table
// byte and fields of fixed length, NUL-terminated text (repositories, artifact
// types) or digests that begin with their algorithm; the last field needs no
// end. Numbers are big-endian. So the order of keys is the order of their
// fields, and text sorts by bytes, as tags/list and _catalog want it.
const (
	tabMeta     = 0x00 // name
	tabEntry    = 0x01 // pid kind repo NUL name
	tabIndex    = 0x02 // pid inc seq kind repo NUL name
	tabVector   = 0x03 // pid inc
	tabPurged   = 0x04 // pid inc
	tabCheck    = 0x05 // pid
	tabLive     = 0x06 // pid kind repo NUL name
	tabRepo     = 0x07 // pid repo
	tabRef      = 0x08 // digest pid repo NUL parent
	tabReferrer = 0x09 // pid repo NUL subject type NUL digest
	tabTagOf    = 0x0a // pid repo NUL digest tag
	tabTomb     = 0x0b // pid ms kind repo NUL name
	tabBlob     = 0x10 // digest
	tabContent  = 0x11 // digest
	tabLease    = 0x12 // digest pid repo
	tabPin      = 0x13 // digest store pid inc seq
	tabDeleting = 0x14 // digest
	tabLetGo    = 0x15 // digest
	tabProof    = 0x16 // digest pid
	tabFeed     = 0x18 // n
	tabFeedPos  = 0x19 // digest
	tabHint     = 0x1a // digest
	tabStore    = 0x1b // store
	tabEpoch    = 0x1c // n epoch
	tabInc      = 0x20 // inc
	tabConflict = 0x21 // pid inc seq repo NUL tag
	tabFrozen   = 0x22 // pid
	tabEnd      = 0xff // no fields: see spanAll
)

// Names in tabMeta.
const (
	metaFirst  = "" // before all other rows: see spanAll
	metaSchema = "schema"
	metaStores = "stores" // how many store numbers were given out
)

// kind of an entry. The numbers are stored and sent.
type kind byte

const (
	kindTag      kind = 1
	kindManifest kind = 2
	kindClear    kind = 3 // repository-clear: reserved, refused for now
)

// entryKey names an entry inside a project.
type entryKey struct {
	kind kind
	repo string
	name string // tag, or rawDigest as a string
}

const (
	algSHA256 = 1
	algSHA512 = 2
)

// maxNameBytes bounds repositories, tags and artifact types in keys. Badger
// takes keys up to 64 KiB; the grammar of names allows less than this.
const maxNameBytes = 512

// rawDigest gives the algorithm's byte and the digest's raw bytes.
func rawDigest(d digest.Digest) ([]byte, error) {
	name, enc, _ := strings.Cut(string(d), ":") // the methods of d panic when it is malformed
	var (
		alg  byte
		want int
	)
	switch digest.Algorithm(name) {
	case digest.SHA256:
		alg, want = algSHA256, 32
	case digest.SHA512:
		alg, want = algSHA512, 64
	default:
		return nil, fmt.Errorf("%w: digest %q", ErrInvalid, string(d))
	}
	out := make([]byte, 1+want)
	out[0] = alg
	if len(enc) != 2*want || !decodeLower(out[1:], enc) {
		return nil, fmt.Errorf("%w: digest %q", ErrInvalid, string(d))
	}
	return out, nil
}

// decodeLower reads hexadecimal digits in lower case into to, which they fill.
func decodeLower(to []byte, digits string) bool {
	for i := range to {
		high, low := nibble(digits[2*i]), nibble(digits[2*i+1])
		if high|low > 0xf {
			return false
		}
		to[i] = high<<4 | low
	}
	return true
}

func nibble(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// rawLen gives how many bytes at the front of b are a raw digest; 0: none.
func rawLen(b []byte) int {
	n := 0
	if len(b) > 0 {
		switch b[0] {
		case algSHA256:
			n = 1 + 32
		case algSHA512:
			n = 1 + 64
		}
	}
	if len(b) < n {
		return 0
	}
	return n
}

// isDigest reports whether b is a raw digest.
func isDigest(b []byte) bool { return len(b) > 0 && rawLen(b) == len(b) }

// cutDigest reads a raw digest from the front of b.
func cutDigest(b []byte) (d digest.Digest, rest []byte, ok bool) {
	n := rawLen(b)
	if n == 0 {
		return "", nil, false
	}
	alg := digest.SHA256
	if b[0] == algSHA512 {
		alg = digest.SHA512
	}
	// This is done for each blob of each manifest that is looked at: one allocation.
	var text [len(digest.SHA512) + 1 + 2*64]byte
	at := copy(text[:], alg)
	text[at] = ':'
	at++
	at += hex.Encode(text[at:], b[1:n])
	return digest.Digest(text[:at]), b[n:], true
}

// parseDigest reads a raw digest that is all of b.
func parseDigest(b []byte) (digest.Digest, bool) {
	d, rest, ok := cutDigest(b)
	return d, ok && len(rest) == 0
}

// checkName refuses what would break the order or the ends of keys. It is no
// grammar: that is the API's.
func checkName(what, s string) error {
	if s == "" || len(s) > maxNameBytes || strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("%w: %s %q", ErrInvalid, what, s)
	}
	return nil
}

func appendText(b []byte, s string) []byte { return append(append(b, s...), 0) }

func cutText(b []byte) (s string, rest []byte, ok bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", nil, false
	}
	return string(b[:i]), b[i+1:], true
}

func keyMeta(name string) []byte { return append([]byte{tabMeta}, name...) }

func prefixPID(tab byte, pid identity.ProjectID) []byte {
	return append(append(make([]byte, 0, 17+64), tab), pid[:]...)
}

// prefixRepo begins all keys of one kind and repository in tabEntry and tabLive.
func prefixRepo(tab byte, pid identity.ProjectID, k kind, repo string) []byte {
	return appendText(append(prefixPID(tab, pid), byte(k)), repo)
}

// suffix is the entry's name inside its project: what pages carry.
func (k entryKey) suffix() []byte { return k.append(nil) }

func (k entryKey) append(b []byte) []byte {
	return append(appendText(append(b, byte(k.kind)), k.repo), k.name...)
}

func parseEntrySuffix(b []byte) (entryKey, bool) {
	if len(b) == 0 {
		return entryKey{}, false
	}
	k := entryKey{kind: kind(b[0])}
	repo, rest, ok := cutText(b[1:])
	if !ok || checkName("repository", repo) != nil {
		return entryKey{}, false
	}
	k.repo, k.name = repo, string(rest)
	switch k.kind {
	case kindTag:
		ok = checkName("tag", k.name) == nil
	case kindManifest:
		ok = isDigest(rest)
	default:
		ok = false
	}
	return k, ok
}

// digest of a manifest's entry.
func (k entryKey) digest() digest.Digest {
	d, _ := parseDigest([]byte(k.name))
	return d
}

func keyEntry(pid identity.ProjectID, k entryKey) []byte { return k.append(prefixPID(tabEntry, pid)) }
func keyLive(pid identity.ProjectID, k entryKey) []byte  { return k.append(prefixPID(tabLive, pid)) }

// parsePIDEntry reads keys of tabEntry and tabLive.
func parsePIDEntry(key []byte) (pid identity.ProjectID, k entryKey, ok bool) {
	if len(key) < 17 {
		return pid, k, false
	}
	copy(pid[:], key[1:])
	k, ok = parseEntrySuffix(key[17:])
	return pid, k, ok
}

func prefixInc(tab byte, pid identity.ProjectID, inc identity.Incarnation) []byte {
	return binary.BigEndian.AppendUint64(prefixPID(tab, pid), uint64(inc))
}

func keyIndex(pid identity.ProjectID, d Dot, k entryKey) []byte {
	return k.append(binary.BigEndian.AppendUint64(prefixInc(tabIndex, pid, d.Inc), d.Seq))
}

func parseIndex(key []byte) (d Dot, k entryKey, ok bool) {
	if len(key) < 33 {
		return d, k, false
	}
	d.Inc = identity.Incarnation(binary.BigEndian.Uint64(key[17:]))
	d.Seq = binary.BigEndian.Uint64(key[25:])
	k, ok = parseEntrySuffix(key[33:])
	return d, k, ok
}

// keyVector is a key of tabVector and tabPurged.
func keyVector(tab byte, pid identity.ProjectID, inc identity.Incarnation) []byte {
	return prefixInc(tab, pid, inc)
}

func parseVector(key []byte) (inc identity.Incarnation, ok bool) {
	if len(key) != 25 {
		return 0, false
	}
	return identity.Incarnation(binary.BigEndian.Uint64(key[17:])), true
}

// keyTomb is the row of a tombstone, by the time since when it is one.
func keyTomb(pid identity.ProjectID, ms int64, k entryKey) []byte {
	return k.append(binary.BigEndian.AppendUint64(prefixPID(tabTomb, pid), uint64(max(ms, 0))))
}

func parseTomb(key []byte) (ms int64, k entryKey, ok bool) {
	if len(key) < 25 {
		return 0, k, false
	}
	k, ok = parseEntrySuffix(key[25:])
	return int64(binary.BigEndian.Uint64(key[17:])), k, ok
}

func keyCheck(pid identity.ProjectID) []byte { return prefixPID(tabCheck, pid) }

func parseCheck(key []byte) (pid identity.ProjectID, ok bool) {
	if len(key) != 17 {
		return pid, false
	}
	copy(pid[:], key[1:])
	return pid, true
}

func keyRepo(pid identity.ProjectID, repo string) []byte {
	return append(prefixPID(tabRepo, pid), repo...)
}

func parseRepo(key []byte) (repo string, ok bool) {
	if len(key) < 18 {
		return "", false
	}
	return string(key[17:]), true
}

// prefixDigest begins all keys of a digest in tabRef, tabLease and tabPin, and
// is the whole key in the tables that have nothing else.
func prefixDigest(tab byte, raw []byte) []byte {
	return append(append(make([]byte, 0, 1+len(raw)+96), tab), raw...)
}

func parseDigestKey(key []byte) (digest.Digest, bool) {
	if len(key) == 0 {
		return "", false
	}
	return parseDigest(key[1:])
}

func prefixRefPID(raw []byte, pid identity.ProjectID) []byte {
	return append(prefixDigest(tabRef, raw), pid[:]...)
}

func prefixRefRepo(raw []byte, pid identity.ProjectID, repo string) []byte {
	return appendText(prefixRefPID(raw, pid), repo)
}

func keyRef(raw []byte, pid identity.ProjectID, repo, parent string) []byte {
	return append(prefixRefRepo(raw, pid, repo), parent...)
}

func parseRef(key []byte) (d digest.Digest, pid identity.ProjectID, repo string, parent digest.Digest, ok bool) {
	d, pid, rest, ok := cutDigestPID(key)
	if !ok {
		return "", pid, "", "", false
	}
	repo, rest, ok = cutText(rest)
	if !ok {
		return "", pid, "", "", false
	}
	parent, ok = parseDigest(rest)
	return d, pid, repo, parent, ok
}

func cutDigestPID(key []byte) (d digest.Digest, pid identity.ProjectID, rest []byte, ok bool) {
	if len(key) == 0 {
		return "", pid, nil, false
	}
	d, rest, ok = cutDigest(key[1:])
	if !ok || len(rest) < len(pid) {
		return "", pid, nil, false
	}
	copy(pid[:], rest)
	return d, pid, rest[len(pid):], true
}

// prefixReferrer begins the referrers of one subject; typ "" are those of any
// type. Each referrer that has a type has two rows.
func prefixReferrer(pid identity.ProjectID, repo string, subject []byte, typ string) []byte {
	return appendText(append(appendText(prefixPID(tabReferrer, pid), repo), subject...), typ)
}

func keyReferrer(pid identity.ProjectID, repo string, subject []byte, typ, name string) []byte {
	return append(prefixReferrer(pid, repo, subject, typ), name...)
}

func parseReferrer(key []byte) (repo string, subject digest.Digest, typ string, d digest.Digest, ok bool) {
	if len(key) < 17 {
		return "", "", "", "", false
	}
	repo, rest, ok := cutText(key[17:])
	if !ok {
		return "", "", "", "", false
	}
	if subject, rest, ok = cutDigest(rest); !ok {
		return "", "", "", "", false
	}
	if typ, rest, ok = cutText(rest); !ok {
		return "", "", "", "", false
	}
	d, ok = parseDigest(rest)
	return repo, subject, typ, d, ok
}

func prefixTagOf(pid identity.ProjectID, repo string, raw []byte) []byte {
	return append(appendText(prefixPID(tabTagOf, pid), repo), raw...)
}

func keyTagOf(pid identity.ProjectID, repo string, raw []byte, tag string) []byte {
	return append(prefixTagOf(pid, repo, raw), tag...)
}

func parseTagOf(key []byte) (repo string, d digest.Digest, tag string, ok bool) {
	if len(key) < 17 {
		return "", "", "", false
	}
	repo, rest, ok := cutText(key[17:])
	if !ok {
		return "", "", "", false
	}
	d, rest, ok = cutDigest(rest)
	return repo, d, string(rest), ok && len(rest) > 0
}

// prefixLease begins the leases of a digest in one project.
func prefixLease(raw []byte, pid identity.ProjectID) []byte {
	return append(prefixDigest(tabLease, raw), pid[:]...)
}

func keyLease(raw []byte, pid identity.ProjectID, repo string) []byte {
	return append(prefixLease(raw, pid), repo...)
}

func parseLease(key []byte) (d digest.Digest, pid identity.ProjectID, repo string, ok bool) {
	d, pid, rest, ok := cutDigestPID(key)
	return d, pid, string(rest), ok && len(rest) > 0
}

func keyPin(raw []byte, store identity.StoreID, pid identity.ProjectID, d Dot) []byte {
	b := append(append(prefixDigest(tabPin, raw), store[:]...), pid[:]...)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(d.Inc)), d.Seq)
}

func parsePin(key []byte) (p Pin, ok bool) {
	if len(key) == 0 {
		return p, false
	}
	d, rest, ok := cutDigest(key[1:])
	if !ok || len(rest) != 48 {
		return p, false
	}
	p.Digest = d
	copy(p.For[:], rest)
	copy(p.PID[:], rest[16:])
	p.Dot.Inc = identity.Incarnation(binary.BigEndian.Uint64(rest[32:]))
	p.Dot.Seq = binary.BigEndian.Uint64(rest[40:])
	return p, true
}

func keyFeed(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{tabFeed}, n) }

func parseFeed(key []byte) (uint64, bool) {
	if len(key) != 9 {
		return 0, false
	}
	return binary.BigEndian.Uint64(key[1:]), true
}

func keyEpoch(start, epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{tabEpoch}, start), epoch)
}

func parseEpoch(key []byte) (start, epoch uint64, ok bool) {
	if len(key) != 17 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(key[1:9]), binary.BigEndian.Uint64(key[9:]), true
}

func keyStore(id identity.StoreID) []byte { return append([]byte{tabStore}, id[:]...) }

func parseStore(key []byte) (id identity.StoreID, ok bool) {
	if len(key) != 17 {
		return id, false
	}
	copy(id[:], key[1:])
	return id, true
}

func keyInc(inc identity.Incarnation) []byte {
	return binary.BigEndian.AppendUint64([]byte{tabInc}, uint64(inc))
}

func parseInc(key []byte) (identity.Incarnation, bool) {
	if len(key) != 9 {
		return 0, false
	}
	return identity.Incarnation(binary.BigEndian.Uint64(key[1:])), true
}

func keyConflict(pid identity.ProjectID, d Dot, repo, tag string) []byte {
	b := binary.BigEndian.AppendUint64(prefixInc(tabConflict, pid, d.Inc), d.Seq)
	return append(appendText(b, repo), tag...)
}

func parseConflict(key []byte) (pid identity.ProjectID, d Dot, repo, tag string, ok bool) {
	if len(key) < 33 {
		return pid, d, "", "", false
	}
	copy(pid[:], key[1:])
	d.Inc = identity.Incarnation(binary.BigEndian.Uint64(key[17:]))
	d.Seq = binary.BigEndian.Uint64(key[25:])
	repo, rest, ok := cutText(key[33:])
	return pid, d, repo, string(rest), ok && len(rest) > 0
}

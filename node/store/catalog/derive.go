package catalog

import (
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// Roles in tabTagOf: what a digest is to a tag.
const (
	roleWinner  = 1 // the tag says it
	roleSibling = 2 // the tag says something else, but nobody has ended the conflict
	roleKept    = 3 // lost a conflict that was ended; 8 bytes follow: keepUntil in ms
)

// refSelf is the kind of a manifest's reference to its own bytes.
const refSelf = 0

// row is a key and its value.
type row struct {
	key, value []byte
}

// derive gives all rows that follow from one entry. It is a pure function: when
// an entry changes, by a write here or by merging, the rows of the old state go
// and those of the new one come in the same transaction. Several entries never
// share a row.
func derive(pid identity.ProjectID, k entryKey, e *entry) ([]row, error) {
	if e == nil {
		return nil, nil
	}
	var rows []row
	switch k.kind {
	case kindTag:
		rows = deriveTag(pid, k, e)
	case kindManifest:
		var err error
		if rows, err = deriveManifest(pid, k, e); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: entry of kind %d", ErrInvalid, k.kind)
	}
	if !e.live() {
		rows = append(rows, row{key: keyTomb(pid, e.goneMs, k)})
	}
	return rows, nil
}

func deriveTag(pid identity.ProjectID, k entryKey, e *entry) []row {
	var rows []row
	have := map[string]bool{}
	add := func(raw []byte, value []byte) {
		if !have[string(raw)] {
			have[string(raw)] = true
			rows = append(rows, row{keyTagOf(pid, k.repo, raw, k.name), value})
		}
	}
	if w := e.winner(); w != nil {
		rows = append(rows, row{key: keyLive(pid, k)})
		add(tagDigest(w), []byte{roleWinner})
	}
	for i := range e.sibs {
		add(tagDigest(&e.sibs[i]), []byte{roleSibling})
	}
	until := map[string]int64{}
	for _, l := range e.losers {
		until[l.digest] = max(until[l.digest], l.keepUntilMs)
	}
	for _, l := range e.losers {
		add([]byte(l.digest), binary.BigEndian.AppendUint64([]byte{roleKept}, uint64(until[l.digest])))
	}
	return rows
}

func deriveManifest(pid identity.ProjectID, k entryKey, e *entry) ([]row, error) {
	w := e.winner()
	if w == nil {
		return nil, nil
	}
	v, err := w.says()
	if err != nil {
		return nil, err
	}
	rows := make([]row, 0, len(v.Refs)+4)
	rows = append(rows,
		row{key: keyLive(pid, k)},
		row{keyRef([]byte(k.name), pid, k.repo, k.name), refValue(refSelf, v.Size)})
	have := map[string]bool{k.name: true}
	for _, r := range v.Refs {
		if !have[string(r.Digest)] {
			have[string(r.Digest)] = true
			rows = append(rows, row{keyRef(r.Digest, pid, k.repo, k.name), refValue(byte(r.Kind), r.Size)})
		}
	}
	if len(v.Subject) > 0 {
		rows = append(rows, row{key: keyReferrer(pid, k.repo, v.Subject, "", k.name)})
		if v.ArtifactType != "" {
			rows = append(rows, row{key: keyReferrer(pid, k.repo, v.Subject, v.ArtifactType, k.name)})
		}
	}
	return rows, nil
}

func refValue(kind byte, size int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, uint64(size))
}

func parseRefValue(b []byte) (kind byte, size int64, ok bool) {
	if len(b) != 9 {
		return 0, 0, false
	}
	return b[0], int64(binary.BigEndian.Uint64(b[1:])), true
}

// infoFromEntry reads a live manifest's entry.
func infoFromEntry(k entryKey, e *entry) (ManifestInfo, error) {
	info, _, err := readManifest(k, e)
	return info, err
}

// readManifest is infoFromEntry with all that the entry says.
func readManifest(k entryKey, e *entry) (ManifestInfo, *rowpb.ManifestValue, error) {
	w := e.winner()
	if w == nil {
		return ManifestInfo{}, nil, ErrNotFound
	}
	v, err := w.says()
	if err != nil {
		return ManifestInfo{}, nil, err
	}
	subject, _ := parseDigest(v.Subject)
	return ManifestInfo{
		Repo: k.repo, Digest: k.digest(), MediaType: v.MediaType, Size: v.Size, Subject: subject, ArtifactType: v.ArtifactType,
		Home: v.Home, Actor: w.actor, Dot: w.dot, At: stampTime(w.stamp),
	}, v, nil
}

func digestOrEmpty(raw []byte) digest.Digest {
	d, _ := parseDigest(raw)
	return d
}

package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync/atomic"
)

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
)

// blob is content to push: a few bytes of its own before bytes that many share.
type blob struct {
	parts  [][]byte
	digest string
}

func (b blob) size() (n int64) {
	for _, p := range b.parts {
		n += int64(len(p))
	}
	return n
}

// source makes content that no registry has seen before.
type source struct {
	salt   [16]byte
	serial atomic.Uint64
	shared []byte
}

// newSource makes content of up to most bytes.
func newSource(most int) *source {
	s := &source{shared: make([]byte, most)}
	_, _ = rand.Read(s.shared) // never fails
	_, _ = rand.Read(s.salt[:])
	return s
}

const ownBytes = 24 // salt and number

func (s *source) blob(size int) blob {
	own := binary.BigEndian.AppendUint64(append(make([]byte, 0, ownBytes), s.salt[:]...), s.serial.Add(1))
	parts := [][]byte{own, s.shared[:max(0, size-ownBytes)]}
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return blob{parts: parts, digest: "sha256:" + hex.EncodeToString(h.Sum(nil))}
}

type manifest struct {
	mediaType string
	bytes     []byte
	digest    string
}

func newManifest(mediaType string, b []byte) manifest {
	sum := sha256.Sum256(b)
	return manifest{mediaType, b, "sha256:" + hex.EncodeToString(sum[:])}
}

// image makes the manifest of an image of one layer; all of one repository share
// config and layer, and each number gives another digest of the same length.
func (s *source) image(config, layer blob, i int) manifest {
	return newManifest(mediaManifest, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}],`+
		`"annotations":{"org.opencontainers.image.revision":"%x-%012d"}}`,
		mediaManifest, config.digest, config.size(), layer.digest, layer.size(), s.salt, i))
}

// empty makes an index of nothing: the least that makes a repository.
func (s *source) empty(i int) manifest {
	return newManifest(mediaIndex, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[],`+
		`"annotations":{"org.opencontainers.image.revision":"%x-%012d"}}`, mediaIndex, s.salt, i))
}

// tagName sorts as its number does.
func tagName(i int) string { return fmt.Sprintf("t%09d", i) }

package oracle

import (
	"context"
	"errors"

	"github.com/distribution/distribution/v3"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
)

// manifests implements distribution.ManifestService.
type manifests struct{ *repository }

func (m *manifests) Exists(_ context.Context, d digest.Digest) (bool, error) {
	_, err := m.catalog().Manifest(m.pid, m.path, d)
	if errors.Is(err, catalog.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (m *manifests) Get(ctx context.Context, d digest.Digest, _ ...distribution.ManifestServiceOption) (distribution.Manifest, error) {
	info, err := m.catalog().Manifest(m.pid, m.path, d)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, distribution.ErrManifestUnknownRevision{Name: m.name.Name(), Revision: d}
	}
	if err != nil {
		return nil, err
	}
	b, ok, err := m.catalog().Content(d)
	if err == nil && !ok {
		b, err = (&blobStore{m.repository}).Get(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	parsed, _, err := distribution.UnmarshalManifest(info.MediaType, b)
	return parsed, err
}

func (m *manifests) Put(ctx context.Context, sent distribution.Manifest, options ...distribution.ManifestServiceOption) (digest.Digest, error) {
	mediaType, body, err := sent.Payload()
	if err != nil {
		return "", err
	}
	parsed, err := manifest.Parse(mediaType, body)
	if err != nil {
		return "", distribution.ErrManifestVerification{err}
	}
	put := catalog.Put{PID: m.pid, Repo: m.path, Digest: digest.FromBytes(body), MediaType: parsed.MediaType, Size: int64(len(body)), Bytes: body,
		ArtifactType: parsed.ArtifactType, Home: m.Site, Actor: "user:admin"}
	var missing distribution.ErrManifestVerification
	need := func(list []v1.Descriptor, kind catalog.RefKind) {
		for _, d := range list {
			if _, err := m.linked(d.Digest); err != nil {
				missing = append(missing, distribution.ErrManifestBlobUnknown{Digest: d.Digest})
			}
			put.Refs = append(put.Refs, catalog.Ref{Digest: d.Digest, Size: d.Size, Kind: kind})
		}
	}
	need(parsed.Blobs(), catalog.RefBlob)
	need(parsed.Manifests, catalog.RefManifest)
	if len(missing) > 0 {
		return "", missing
	}
	if parsed.Subject != nil {
		put.Subject = parsed.Subject.Digest
	}
	for _, o := range options {
		if tag, ok := o.(distribution.WithTagOption); ok {
			put.Tags = append(put.Tags, tag.Tag)
		}
	}
	if len(body) > catalog.MaxInlineManifest {
		if _, err := (&blobStore{m.repository}).Put(ctx, mediaType, body); err != nil {
			return "", err
		}
		put.Bytes = nil
	}
	_, err = m.catalog().PutManifest(ctx, put)
	return put.Digest, err
}

func (m *manifests) Delete(ctx context.Context, d digest.Digest) error {
	err := m.catalog().DeleteManifest(ctx, m.pid, m.path, d, "user:admin", 0)
	if errors.Is(err, catalog.ErrNotFound) {
		return distribution.ErrBlobUnknown // which is what the handler looks for
	}
	return err
}

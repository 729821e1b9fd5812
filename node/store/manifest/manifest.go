package manifest

import (
	_ "crypto/sha256" // go-digest takes the algorithms that are linked in, and no others
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxBytes is the size that OCI's distribution specification asks registries
	// to take, and the most that clients send.
	MaxBytes = 4 << 20
	// MaxDescriptors bounds the references of one manifest: rows that one request
	// writes. Real images have fewer than 130 layers, indexes fewer than 100
	// children.
	MaxDescriptors = 10_000
)

// Media types that are understood beyond those of the OCI image specification.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeOCIArtifact    = "application/vnd.oci.artifact.manifest.v1+json"

	mediaTypeSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	mediaTypeSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	mediaTypeForeignLayer  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// Errors of Parse; what wraps them says what is wrong.
var (
	// ErrInvalid is a manifest that no client can use.
	ErrInvalid = errors.New("manifest is invalid")
	// ErrTooLarge is one above MaxBytes or MaxDescriptors.
	ErrTooLarge = errors.New("manifest is too large")
	// ErrUnsupported is a form that Portolan does not take.
	ErrUnsupported = errors.New("manifest type is not supported")
)

// Descriptor names content: the OCI image specification's type.
type Descriptor = v1.Descriptor

// Manifest is what a registry needs to know of one.
type Manifest struct {
	MediaType string // what it is served as; never empty
	// ArtifactType is the manifest's own, or else its config's media type, as the
	// referrers API lists it.
	ArtifactType string
	Config       *Descriptor  // image manifests alone
	Layers       []Descriptor // layers, or the blobs of an artifact manifest
	Manifests    []Descriptor // children of an index
	Subject      *Descriptor  // what this is a referrer of
	Annotations  map[string]string
}

// IsIndex says whether this is an index or manifest list.
func (m *Manifest) IsIndex() bool { return isIndex(m.MediaType) }

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == MediaTypeDockerList
}

// NonDistributable says whether a layer may be missing from a registry: its
// media type says so and it names where else it is.
func NonDistributable(d Descriptor) bool {
	return len(d.URLs) > 0 && (d.MediaType == mediaTypeForeignLayer ||
		strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable."))
}

// Blobs gives the blobs that must be here for the manifest to be complete, each
// once: config first, then layers in order, without non-distributable ones.
func (m *Manifest) Blobs() []Descriptor {
	out := make([]Descriptor, 0, 1+len(m.Layers))
	seen := make(map[digest.Digest]bool, 1+len(m.Layers))
	add := func(d Descriptor) {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			out = append(out, d)
		}
	}
	if m.Config != nil {
		add(*m.Config)
	}
	for _, d := range m.Layers {
		if !NonDistributable(d) {
			add(d)
		}
	}
	return out
}

// document is the union of what the known types have.
type document struct {
	SchemaVersion *int              `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *Descriptor       `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Blobs         []Descriptor      `json:"blobs"`
	Manifests     []Descriptor      `json:"manifests"`
	FSLayers      json.RawMessage   `json:"fsLayers"`
	Subject       *Descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// Parse reads a manifest that was sent as mediaType (a Content-Type; parameters
// are ignored). Empty means that the body says what it is.
func Parse(mediaType string, body []byte) (*Manifest, error) {
	if len(body) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(body), MaxBytes)
	}
	if mediaType != "" {
		base, _, err := mime.ParseMediaType(mediaType)
		if err != nil {
			return nil, fmt.Errorf("%w: content type %q", ErrInvalid, mediaType)
		}
		mediaType = base
	}
	if mediaType != "" && !known(mediaType) {
		if mediaType == mediaTypeSchema1 || mediaType == mediaTypeSchema1Signed {
			return nil, fmt.Errorf("%w: Docker schema 1 is too old, push with a client from 2017 or later", ErrUnsupported)
		}
		if !generic(mediaType) {
			// Some artifact of which we know nothing: kept as it is, unless it says
			// that it is something whose content we would have to look at.
			if says := saysOf(body); known(says) {
				return nil, fmt.Errorf("%w: it was sent as %s and says that it is %s", ErrInvalid, mediaType, says)
			}
			return &Manifest{MediaType: mediaType, ArtifactType: mediaType}, nil
		}
		mediaType = ""
	}
	var doc document
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, wrongJSON(err)
	}
	if err := strict(body); err != nil {
		return nil, err
	}
	if doc.FSLayers != nil && doc.Config == nil && doc.Manifests == nil {
		return nil, fmt.Errorf("%w: Docker schema 1 is too old, push with a client from 2017 or later", ErrUnsupported)
	}
	if mediaType == "" {
		mediaType = doc.sniff()
	}
	if doc.MediaType != "" && doc.MediaType != mediaType {
		return nil, fmt.Errorf("%w: it was sent as %s and says that it is %s", ErrInvalid, mediaType, doc.MediaType)
	}
	if !known(mediaType) {
		return nil, fmt.Errorf("%w: neither its content type nor its mediaType field says what it is", ErrInvalid)
	}
	return doc.manifest(mediaType)
}

// wrongJSON says what is wrong in words of the document, not of Go's types.
func wrongJSON(err error) error {
	var wrong *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &wrong):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case wrong.Field == "":
		return fmt.Errorf("%w: it is not a JSON object", ErrInvalid)
	}
	return fmt.Errorf("%w: %.80q can't be a JSON %.80s", ErrInvalid, wrong.Field, wrong.Value)
}

// saysOf gives the mediaType field of a body that may be anything.
func saysOf(body []byte) string {
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return ""
	}
	return doc.MediaType
}

func known(mediaType string) bool {
	switch mediaType {
	case v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, MediaTypeDockerManifest, MediaTypeDockerList, MediaTypeOCIArtifact:
		return true
	}
	return false
}

// generic are the types that clients send when they do not say what they mean.
func generic(mediaType string) bool {
	switch mediaType {
	case "application/json", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded":
		return true
	}
	return false
}

// sniff tells what a document without a media type is; OCI's two types may leave
// the field out.
func (d *document) sniff() string {
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Manifests != nil:
		return v1.MediaTypeImageIndex
	case d.Config != nil:
		return v1.MediaTypeImageManifest
	default:
		return ""
	}
}

func (d *document) manifest(mediaType string) (*Manifest, error) {
	m := &Manifest{
		MediaType: mediaType, ArtifactType: d.ArtifactType,
		Subject: d.Subject, Annotations: d.Annotations,
	}
	if mediaType != MediaTypeOCIArtifact && (d.SchemaVersion == nil || *d.SchemaVersion != 2) {
		return nil, fmt.Errorf("%w: schemaVersion must be 2", ErrInvalid)
	}
	// One document must not be an image to one client and an index to another.
	switch {
	case isIndex(mediaType):
		if d.Config != nil || d.Layers != nil || d.Blobs != nil || d.FSLayers != nil {
			return nil, fmt.Errorf("%w: an index must not have config, layers or blobs", ErrInvalid)
		}
		m.Manifests = d.Manifests
	case mediaType == MediaTypeOCIArtifact:
		if d.Config != nil || d.Layers != nil || d.Manifests != nil || d.FSLayers != nil {
			return nil, fmt.Errorf("%w: an artifact manifest must not have config, layers or manifests", ErrInvalid)
		}
		m.Layers = d.Blobs
	default:
		if d.Manifests != nil || d.Blobs != nil || d.FSLayers != nil {
			return nil, fmt.Errorf("%w: an image manifest must not have manifests, blobs or fsLayers", ErrInvalid)
		}
		if d.Config == nil {
			return nil, fmt.Errorf("%w: an image manifest must have a config", ErrInvalid)
		}
		m.Config, m.Layers = d.Config, d.Layers
		if m.ArtifactType == "" {
			m.ArtifactType = d.Config.MediaType
		}
	}
	if n := len(m.Layers) + len(m.Manifests); n > MaxDescriptors {
		return nil, fmt.Errorf("%w: it refers to %d parts, at most %d", ErrTooLarge, n, MaxDescriptors)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) check() error {
	sizes := make(map[digest.Digest]int64, 1+len(m.Layers)+len(m.Manifests))
	one := func(what string, d *Descriptor) error {
		if d == nil {
			return nil
		}
		if err := d.Digest.Validate(); err != nil {
			return fmt.Errorf("%w: %s %q: %w", ErrInvalid, what, string(d.Digest), err)
		}
		if d.Size < 0 {
			return fmt.Errorf("%w: %s %s has size %d", ErrInvalid, what, d.Digest, d.Size)
		}
		if size, named := sizes[d.Digest]; named && size != d.Size {
			return fmt.Errorf("%w: it gives %s a size of %d bytes and one of %d", ErrInvalid, d.Digest, size, d.Size)
		}
		sizes[d.Digest] = d.Size
		// What is given beside the digest is what clients will take for the content.
		if len(d.Data) > 0 && (int64(len(d.Data)) != d.Size || d.Digest.Algorithm().FromBytes(d.Data) != d.Digest) {
			return fmt.Errorf("%w: the data of %s %s is not what its digest and size say", ErrInvalid, what, d.Digest)
		}
		return nil
	}
	if err := one("config", m.Config); err != nil {
		return err
	}
	if err := one("subject", m.Subject); err != nil {
		return err
	}
	for i := range m.Layers {
		if err := one("layer", &m.Layers[i]); err != nil {
			return err
		}
	}
	for i := range m.Manifests {
		if err := one("child", &m.Manifests[i]); err != nil {
			return err
		}
	}
	return nil
}

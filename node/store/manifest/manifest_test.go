package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	dA = digest.FromString("a")
	dB = digest.FromString("b")
	dC = digest.FromString("c")

	dLong = digest.SHA512.FromString("long")
)

func desc(d digest.Digest, mediaType string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1}`, mediaType, d)
}

func TestParse(t *testing.T) {
	image := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s,%s,%s]}`,
		desc(dA, "application/vnd.oci.image.config.v1+json"), desc(dB, "l"), desc(dC, "l"), desc(dB, "l"))
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s]}`, desc(dB, v1.MediaTypeImageManifest))
	withType := func(doc, mediaType string) string {
		return strings.Replace(doc, "{", fmt.Sprintf(`{"mediaType":%q,`, mediaType), 1)
	}
	foreign := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[{"mediaType":%q,"digest":%q,"size":9,"urls":["https://example.com/l"]},%s]}`,
		desc(dA, "c"), mediaTypeForeignLayer, dB, desc(dC, "l"))

	type want struct {
		MediaType, ArtifactType string
		Blobs, Children         []digest.Digest
		Subject                 digest.Digest
	}
	for _, tc := range []struct {
		name, sent, body string
		want             want
		err              error
	}{
		{name: "OCI image", sent: v1.MediaTypeImageManifest, body: image,
			want: want{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.oci.image.config.v1+json", Blobs: []digest.Digest{dA, dB, dC}}},
		{name: "content type with parameters", sent: v1.MediaTypeImageManifest + "; charset=utf-8", body: image,
			want: want{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.oci.image.config.v1+json", Blobs: []digest.Digest{dA, dB, dC}}},
		{name: "Docker image", sent: MediaTypeDockerManifest, body: withType(image, MediaTypeDockerManifest),
			want: want{MediaType: MediaTypeDockerManifest, ArtifactType: "application/vnd.oci.image.config.v1+json", Blobs: []digest.Digest{dA, dB, dC}}},
		{name: "no type at all, an image", body: image,
			want: want{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.oci.image.config.v1+json", Blobs: []digest.Digest{dA, dB, dC}}},
		{name: "no type at all, an index", body: index,
			want: want{MediaType: v1.MediaTypeImageIndex, Children: []digest.Digest{dB}}},
		{name: "generic type, body knows", sent: "application/json", body: withType(index, MediaTypeDockerList),
			want: want{MediaType: MediaTypeDockerList, Children: []digest.Digest{dB}}},
		{name: "empty index", sent: v1.MediaTypeImageIndex, body: `{"schemaVersion":2,"manifests":[]}`,
			want: want{MediaType: v1.MediaTypeImageIndex}},
		{name: "own artifact type wins over the config's", sent: v1.MediaTypeImageManifest,
			body: strings.Replace(image, "{", `{"artifactType":"x/y","subject":`+desc(dC, "m")+`,`, 1),
			want: want{MediaType: v1.MediaTypeImageManifest, ArtifactType: "x/y", Blobs: []digest.Digest{dA, dB, dC}, Subject: dC}},
		{name: "artifact manifest", sent: MediaTypeOCIArtifact, body: fmt.Sprintf(`{"artifactType":"x/y","blobs":[%s]}`, desc(dA, "b")),
			want: want{MediaType: MediaTypeOCIArtifact, ArtifactType: "x/y", Blobs: []digest.Digest{dA}}},
		{name: "foreign layers are not required", sent: v1.MediaTypeImageManifest, body: foreign,
			want: want{MediaType: v1.MediaTypeImageManifest, ArtifactType: "c", Blobs: []digest.Digest{dA, dC}}},
		{name: "unknown types are artifacts", sent: "application/x.thing", body: "\x00\x01",
			want: want{MediaType: "application/x.thing", ArtifactType: "application/x.thing"}},

		{name: "sent as one, says another", sent: v1.MediaTypeImageManifest, body: withType(image, MediaTypeDockerManifest), err: ErrInvalid},
		{name: "image and index in one", sent: v1.MediaTypeImageManifest, body: strings.Replace(image, "{", `{"manifests":[],`, 1), err: ErrInvalid},
		{name: "index with layers", sent: v1.MediaTypeImageIndex, body: strings.Replace(index, "{", `{"layers":[],`, 1), err: ErrInvalid},
		{name: "no config", sent: v1.MediaTypeImageManifest, body: `{"schemaVersion":2,"layers":[]}`, err: ErrInvalid},
		{name: "no schema version", sent: v1.MediaTypeImageIndex, body: `{"manifests":[]}`, err: ErrInvalid},
		{name: "nothing says what it is", body: `{}`, err: ErrInvalid},
		{name: "not JSON", sent: v1.MediaTypeImageManifest, body: `<html>`, err: ErrInvalid},
		{name: "something behind the JSON", sent: v1.MediaTypeImageManifest, body: image + "x", err: ErrInvalid},
		{name: "parts by sha512", sent: v1.MediaTypeImageManifest,
			body: strings.Replace(strings.Replace(image, "{", `{"artifactType":"x/y","subject":`+desc(dLong, "m")+`,`, 1), dA.String(), dLong.String(), 1),
			want: want{MediaType: v1.MediaTypeImageManifest, ArtifactType: "x/y", Blobs: []digest.Digest{dLong, dB, dC}, Subject: dLong}},
		{name: "half a sha512", sent: v1.MediaTypeImageIndex, body: fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":"sha512:%s","size":1}]}`, dA.Encoded()), err: ErrInvalid},
		{name: "bad digest", sent: v1.MediaTypeImageIndex, body: `{"schemaVersion":2,"manifests":[{"digest":"sha256:12","size":1}]}`, err: ErrInvalid},
		{name: "data", sent: v1.MediaTypeImageIndex, body: fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":1,"data":"YQ=="}]}`, dA),
			want: want{MediaType: v1.MediaTypeImageIndex, Children: []digest.Digest{dA}}},
		{name: "data of something else", sent: v1.MediaTypeImageIndex, body: fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":1,"data":"Yg=="}]}`, dA), err: ErrInvalid},
		{name: "data of another size", sent: v1.MediaTypeImageIndex, body: fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":2,"data":"YQ=="}]}`, dA), err: ErrInvalid},
		{name: "negative size", sent: v1.MediaTypeImageIndex, body: fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":-1}]}`, dA), err: ErrInvalid},
		{name: "bad subject", sent: v1.MediaTypeImageManifest, body: strings.Replace(image, "{", `{"subject":{"digest":""},`, 1), err: ErrInvalid},
		{name: "bad content type", sent: "a/b/c", body: image, err: ErrInvalid},
		{name: "schema 1 by type", sent: mediaTypeSchema1Signed, body: `{}`, err: ErrUnsupported},
		{name: "schema 1 by content", body: `{"schemaVersion":1,"fsLayers":[]}`, err: ErrUnsupported},
		{name: "too many bytes", sent: v1.MediaTypeImageIndex, body: strings.Repeat(" ", MaxBytes+1), err: ErrTooLarge},
		{name: "too many children", sent: v1.MediaTypeImageIndex,
			body: `{"schemaVersion":2,"manifests":[` + strings.Repeat(`{},`, MaxDescriptors) + `{}]}`, err: ErrTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := Parse(tc.sent, []byte(tc.body))
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if tc.err != nil {
				return
			}
			got := want{MediaType: m.MediaType, ArtifactType: m.ArtifactType}
			for _, d := range m.Blobs() {
				got.Blobs = append(got.Blobs, d.Digest)
			}
			for _, d := range m.Manifests {
				got.Children = append(got.Children, d.Digest)
			}
			if m.Subject != nil {
				got.Subject = m.Subject.Digest
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("wanted -, got +:\n%s", diff)
			}
		})
	}
}

// FuzzParse checks that whatever is accepted keeps the package's promises.
func FuzzParse(f *testing.F) {
	f.Add(v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{"digest":"`+string(dA)+`"},"layers":[]}`))
	f.Add(v1.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"digest":"`+string(dA)+`"}]}`))
	f.Add("", []byte(`{"mediaType":"`+MediaTypeOCIArtifact+`","blobs":[{"digest":"`+string(dA)+`"}]}`))
	f.Add("application/x", []byte(`null`))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		before := bytes.Clone(body)
		m, err := Parse(mediaType, body)
		if !bytes.Equal(before, body) {
			t.Fatal("the body was changed")
		}
		if err != nil {
			if m != nil || !(errors.Is(err, ErrInvalid) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrUnsupported)) {
				t.Fatalf("%v with manifest %v", err, m)
			}
			return
		}
		if m.MediaType == "" {
			t.Fatal("no media type")
		}
		if len(m.Manifests) > 0 && (m.Config != nil || len(m.Layers) > 0) {
			t.Fatal("an image and an index at once")
		}
		for _, d := range append(m.Blobs(), m.Manifests...) {
			if d.Digest.Validate() != nil || d.Size < 0 {
				t.Fatalf("accepted %+v", d)
			}
		}
		if m.Config != nil && m.ArtifactType == "" && m.Config.MediaType != "" {
			t.Fatal("artifact type does not fall back to the config's")
		}
		if _, err := json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	})
}

// What is wrong is said in words of the document: clients show it to people who
// have never heard of Go's types.
func TestParse_SaysWhatIsWrong(t *testing.T) {
	for body, want := range map[string]string{
		`[]`:                                  `it is not a JSON object`,
		`"text"`:                              `it is not a JSON object`,
		`{"schemaVersion":"2"}`:               `"schemaVersion" can't be a JSON string`,
		`{"schemaVersion":2,"layers":{}}`:     `"layers" can't be a JSON object`,
		`{"config":{"size":1.5}}`:             `"config.size" can't be a JSON number 1.5`,
		`{"annotations":{"a":` + `[1]` + `}}`: `"annotations" can't be a JSON array`,
	} {
		_, err := Parse(v1.MediaTypeImageManifest, []byte(body))
		if !errors.Is(err, ErrInvalid) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", body, err, want)
			continue
		}
		for _, word := range []string{"Go ", "struct", "unmarshal", "int64", "document"} {
			if strings.Contains(strings.TrimPrefix(err.Error(), ErrInvalid.Error()), word) {
				t.Errorf("%s: %v", body, err)
			}
		}
	}
}

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3"
	_ "github.com/distribution/distribution/v3/manifest/manifestlist" // registers Docker's list
	_ "github.com/distribution/distribution/v3/manifest/ocischema"    // registers OCI's two types
	_ "github.com/distribution/distribution/v3/manifest/schema2"      // registers Docker's image
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// goodImage is what the bad ones below are made of.
func goodImage() string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, v1.MediaTypeImageManifest, desc(dA, "c"), desc(dB, "l"))
}

// hostile are documents that must be refused, by what is wrong with them.
func hostile() map[string]string {
	image := goodImage()
	edit := func(old, with string) string {
		if !strings.Contains(image, old) {
			panic(old)
		}
		return strings.Replace(image, old, with, 1)
	}
	sha512 := digest.SHA512.FromString("x").String()
	return map[string]string{
		"a name twice":                                    edit(`"layers"`, `"layers":[],"layers"`),
		"a name twice, once escaped":                      edit(`"layers"`, `"l\u0061yers":[],"layers"`),
		"a name twice in a descriptor":                    edit(`"size":1`, `"size":1,"size":1`),
		"an annotation twice":                             edit(`"config"`, `"annotations":{"a":"b","a":"c"},"config"`),
		"a name twice where nobody looks":                 edit(`"config"`, `"x":[{"y":{"z":1,"z":2}}],"config"`),
		"a name in another case":                          edit(`"layers"`, `"Layers"`),
		"a name in another case besides":                  edit(`"layers"`, `"LAYERS":[],"layers"`),
		"a name with a long s":                            edit(`"size"`, "\"\u017fize\":7,\"size\""),
		"a digest in another case":                        edit(`"digest"`, `"Digest":"`+dC.String()+`","digest"`),
		"no UTF-8 in an annotation":                       edit(`"config"`, `"annotations":{"a":"`+"\xff"+`"},"config"`),
		"no UTF-8 in a name":                              edit(`"config"`, `"`+"\xc3\x28"+`":1,"config"`),
		"a byte order mark":                               "\ufeff" + image,
		"something behind it":                             image + "{}",
		"cut off":                                         image[:len(image)-1],
		"deep where nobody looks":                         edit(`"config"`, `"x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`,"config"`),
		"deeper than any stack":                           edit(`"config"`, `"x":`+strings.Repeat(`{"a":`, 200_000)+`1`+strings.Repeat("}", 200_000)+`,"config"`),
		"only openings":                                   strings.Repeat("[", 1<<20),
		"a size above int64":                              edit(`"size":1`, `"size":9223372036854775808`),
		"a size as a fraction":                            edit(`"size":1`, `"size":1.5`),
		"a size as text":                                  edit(`"size":1`, `"size":"1"`),
		"a negative size":                                 edit(`"size":1`, `"size":-1`),
		"two sizes of one digest":                         edit(desc(dB, "l"), desc(dB, "l")+`,`+strings.Replace(desc(dB, "l"), `"size":1`, `"size":2`, 1)),
		"the config's digest as a layer, of another size": edit(desc(dB, "l"), strings.Replace(desc(dA, "l"), `"size":1`, `"size":3`, 1)),
		"a layer that is null":                            edit(desc(dB, "l"), `null`),
		"a config that is null":                           edit(desc(dA, "c"), `null`),
		"a config that is a list":                         edit(desc(dA, "c"), `[]`),
		"layers that are an object":                       edit(`[`+desc(dB, "l")+`]`, `{}`),
		"an empty digest":                                 edit(dB.String(), ``),
		"a digest that is a path":                         edit(dB.String(), `sha256:../../../../etc/passwd`),
		"a digest in capitals":                            edit(dB.String(), strings.ToUpper(dB.String()[:7])+dB.String()[7:]),
		"a digest of a length of another":                 edit(dB.String(), `sha256:`+strings.TrimPrefix(sha512, "sha512:")),
		"a digest of an unknown algorithm":                edit(dB.String(), `md5:`+strings.Repeat("a", 32)),
		"a digest with a newline":                         edit(dB.String(), dB.String()+`\n`),
		"an index's children, too":                        edit(`"config"`, `"manifests":null,"manifests":[],"config"`),
		"schema version as a fraction":                    edit(`"schemaVersion":2`, `"schemaVersion":2.5`),
		"schema version 1":                                edit(`"schemaVersion":2`, `"schemaVersion":1`),
		"a subject without a digest":                      edit(`"config"`, `"subject":{},"config"`),
		"null":                                            `null`,
		"a list":                                          `[` + image + `]`,
		"text":                                            strconv.Quote(image),
		"nothing":                                         ``,
		"spaces":                                          strings.Repeat(" ", 1000),
	}
}

func TestParse_RefusesWhatIsAmbiguous(t *testing.T) {
	for name, doc := range hostile() {
		t.Run(name, func(t *testing.T) {
			for _, as := range []string{v1.MediaTypeImageManifest, MediaTypeOCIArtifact, v1.MediaTypeImageIndex, ""} {
				m, err := Parse(as, []byte(doc))
				if m != nil || !(errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnsupported)) {
					t.Fatalf("as %q: %+v, %v", as, m, err)
				}
				if len(err.Error()) > 600 {
					t.Errorf("as %q: a message of %d bytes: %.200s", as, len(err.Error()), err)
				}
			}
		})
	}
	if _, err := Parse("", []byte(goodImage())); err != nil {
		t.Errorf("what they are made of: %v", err)
	}
}

// A type that we know must not come in by another name, unlooked at.
func TestParse_KnownContentUnderAnotherName(t *testing.T) {
	if m, err := Parse("application/vnd.example", []byte(goodImage())); !errors.Is(err, ErrInvalid) {
		t.Errorf("%+v, %v", m, err)
	}
	for _, doc := range []string{`{"mediaType":"application/vnd.example.other"}`, `{"a":1,"a":2}`, "\ufeff", `[1]`, ``} {
		if m, err := Parse("application/vnd.example", []byte(doc)); err != nil || m.MediaType != "application/vnd.example" {
			t.Errorf("%q: %+v, %v", doc, m, err)
		}
	}
}

// FuzzParse_Oracles compares what is accepted with two other readers of the
// same bytes: one that is strict about case and takes the last of two, and
// distribution's own. All must find the same parts.
func FuzzParse_Oracles(f *testing.F) {
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, v1.MediaTypeImageIndex, desc(dA, v1.MediaTypeImageManifest), desc(dB, v1.MediaTypeImageIndex))
	f.Add(v1.MediaTypeImageManifest, []byte(goodImage()))
	f.Add(v1.MediaTypeImageIndex, []byte(index))
	f.Add(MediaTypeDockerManifest, []byte(strings.ReplaceAll(goodImage(), v1.MediaTypeImageManifest, MediaTypeDockerManifest)))
	f.Add(MediaTypeDockerList, []byte(strings.ReplaceAll(index, v1.MediaTypeImageIndex, MediaTypeDockerList)))
	f.Add(MediaTypeOCIArtifact, []byte(`{"mediaType":"`+MediaTypeOCIArtifact+`","artifactType":"x/y","blobs":[`+desc(dA, "b")+`],"subject":`+desc(dC, "s")+`}`))
	f.Add("application/json", []byte(index))
	for _, doc := range hostile() {
		if len(doc) < 4<<10 { // the engine does not want megabytes
			f.Add(v1.MediaTypeImageManifest, []byte(doc))
		}
	}
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		m, err := Parse(mediaType, body)
		if err != nil || !known(m.MediaType) {
			return
		}
		ours := parts(m)
		if theirs := lastWins(t, body); !slices.Equal(ours, theirs) {
			t.Fatalf("we read %v, a reader that is strict about case %v", ours, theirs)
		}
		if m.MediaType == MediaTypeOCIArtifact {
			return // distribution never knew it
		}
		theirs, _, err := distribution.UnmarshalManifest(m.MediaType, bytes.Clone(body))
		if err != nil {
			return // it wants more (a mediaType field in Docker's types)
		}
		var refs []string
		for _, d := range theirs.References() {
			refs = append(refs, fmt.Sprint(d.Digest, " ", d.Size))
		}
		if m.Subject != nil {
			ours = ours[:len(ours)-1]
		}
		if !slices.Equal(ours, refs) {
			t.Fatalf("we read %v, distribution %v", ours, refs)
		}
	})
}

// parts lists what a manifest names: config, layers, children, subject.
func parts(m *Manifest) []string {
	all := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		all = slices.Insert(all, 0, *m.Config)
	}
	if m.Subject != nil {
		all = append(all, *m.Subject)
	}
	var out []string
	for _, d := range all {
		out = append(out, fmt.Sprint(d.Digest, " ", d.Size))
	}
	return out
}

// lastWins reads by maps: names are compared byte by byte.
func lastWins(t *testing.T, body []byte) (out []string) {
	t.Helper()
	var doc map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"config", "layers", "blobs", "manifests", "subject"} {
		list, ok := doc[name].([]any)
		if !ok {
			list = []any{doc[name]}
		}
		for _, v := range list {
			if d, ok := v.(map[string]any); ok {
				size, _ := d["size"].(json.Number)
				n, _ := size.Int64()
				digest, _ := d["digest"].(string)
				out = append(out, fmt.Sprint(digest, " ", n))
			}
		}
	}
	return out
}

// A manifest as large as is taken must not cost more than its size explains.
func BenchmarkParse(b *testing.B) {
	small := []byte(goodImage())
	var layers []string
	for i := range 9_000 {
		layers = append(layers, desc(digest.FromString(strconv.Itoa(i)), "l"))
	}
	large := fmt.Appendf(nil, `{"schemaVersion":2,"config":%s,"layers":[%s]}`, desc(dA, "c"), strings.Join(layers, ","))
	for name, body := range map[string][]byte{"one layer": small, "9000 layers": large} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(v1.MediaTypeImageManifest, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep a manifest nests. Real ones have a depth of six;
// parsers of other languages give up, or out, somewhere above a hundred.
const maxDepth = 64

// Names that parsers of this type look at, by where they stand. Go's decoder
// takes another spelling of case for the same name; those of other languages do
// not.
var (
	documentNames   = []string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "blobs", "manifests", "fsLayers", "subject", "annotations"}
	descriptorNames = []string{"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"}
)

// strict refuses documents that two parsers may read as two documents: a name
// twice in one object (some take the first, some the last), a name that is one
// of the known but for its case, text that is not UTF-8, nesting without end. A
// digest names bytes; it must not mean one image to the scanner and another to
// the engine. The body has been found to be JSON.
func strict(body []byte) error {
	if !utf8.Valid(body) {
		return fmt.Errorf("%w: it is not UTF-8", ErrInvalid)
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		return fmt.Errorf("%w: it is not a JSON object", ErrInvalid)
	}
	w := walker{dec: json.NewDecoder(bytes.NewReader(body))}
	w.dec.UseNumber()
	return w.value(0, nil, "")
}

type walker struct{ dec *json.Decoder }

// value reads one value. known are the names that mean something in it, if it
// is an object; at says where it stands.
func (w *walker) value(depth int, known []string, at string) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: it nests more than %d deep", ErrInvalid, maxDepth)
	}
	tok, err := w.dec.Token()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	switch tok {
	case json.Delim('{'):
		if depth == 0 {
			known = documentNames
		}
		return w.object(depth, known, at)
	case json.Delim('['):
		for w.dec.More() {
			if err := w.value(depth+1, known, at); err != nil {
				return err
			}
		}
		_, err = w.dec.Token()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (w *walker) object(depth int, known []string, at string) error {
	seen := map[string]bool{}
	for w.dec.More() {
		tok, err := w.dec.Token()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		name, _ := tok.(string)
		if seen[name] {
			return fmt.Errorf("%w: it has %.80q twice in %s: one document must not be two to two clients", ErrInvalid, name, where(at))
		}
		seen[name] = true
		for _, k := range known {
			if name != k && strings.EqualFold(name, k) {
				return fmt.Errorf("%w: it has %.80q in %s, which some clients take for %q and some do not: write %q", ErrInvalid, name, where(at), k, k)
			}
		}
		var below []string
		if depth == 0 {
			switch name {
			case "config", "layers", "blobs", "manifests", "subject":
				below = descriptorNames
			}
		}
		if err := w.value(depth+1, below, name); err != nil {
			return err
		}
	}
	if _, err := w.dec.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// where names an object for people.
func where(at string) string {
	if at == "" {
		return "its outermost object"
	}
	return fmt.Sprintf("%.80q", at)
}

package oci

import "testing"

// toolChecks are the checks of the conformance tool of distribution-spec at
// 967efdc0, by the names in its reports. Those of data are pushed, listed, asked
// for by HEAD and GET, by tag and digest, and deleted, each time. sha512 data is
// what the scenarios do in their second round.
var toolChecks = []string{
	"ping", "empty/tag list", "empty/referrers",

	"blobs/get-missing", "blobs/post only", "blobs/post+put", "blobs/chunked single", "blobs/stream", "blobs/mount",
	"blobs/mount anonymous", "blobs/mount missing", "blobs/post cancel", "blobs/chunked multi", "blobs/chunked multi and put chunk",
	"blobs/chunked out-of-order", "blobs/chunked out-of-order and put chunk", "blobs/range requests", "blobs/empty", "blobs/emptyJSON",
	"blobs/bad digest post only", "blobs/bad digest post+put", "blobs/bad digest chunked", "blobs/bad digest chunked and put chunk",
	"blobs/bad digest stream",

	"image", "image-uncompressed", "large-manifest", "index", "nested-index", "empty-index", "artifact", "artifact-index",
	"artifact-without-layers", "artifacts-with-subject", "index-with-subject", "missing-subject", "data-field",
	"non-distributable-layers", "custom-fields", "no-layers", "sha512", "tag-param-sha256", "tag-param-sha512", "bad-digest-image",

	"missing-manifest/by-digest", "missing-manifest/by-tag", "invalid-digest-format/manifest-put", "invalid-digest-format/manifest-get",
}

// TestConformanceTool_IsCovered keeps the table a substitute for the tool. The
// tool's "sparse" data, off by default, is the one thing that is not here:
// manifests of missing blobs are refused, which the specification leaves open.
func TestConformanceTool_IsCovered(t *testing.T) {
	by := map[string][]string{}
	for _, c := range toolChecks {
		by[c] = nil
	}
	for _, s := range scenarios {
		for _, c := range s.covers {
			if _, ok := by[c]; !ok {
				t.Errorf("scenario %q covers %q, which the tool does not have", s.name, c)
			}
			by[c] = append(by[c], s.name)
		}
	}
	for _, c := range toolChecks {
		if len(by[c]) == 0 {
			t.Errorf("no scenario covers the tool's %q", c)
		}
	}
}

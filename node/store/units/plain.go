package units

import "github.com/opencontainers/go-digest"

// isPlain reports whether a digest is one of those that this package works with, as
// almost all are that are looked at: what it refuses, Validate and CheckAlgorithm
// have words for. Their regular expression costs more than a look into the catalogue's
// memory, and it is asked for several times with each blob.
func isPlain(d digest.Digest) bool {
	const sha256, sha512 = string(digest.SHA256) + ":", string(digest.SHA512) + ":"
	var digits string
	switch {
	case len(d) == len(sha256)+64 && string(d[:len(sha256)]) == sha256:
		digits = string(d[len(sha256):])
	case len(d) == len(sha512)+128 && string(d[:len(sha512)]) == sha512:
		digits = string(d[len(sha512):])
	default:
		return false
	}
	for i := range len(digits) {
		if c := digits[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

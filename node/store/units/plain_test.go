package units

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// isPlain takes what the long way takes, and nothing else.
func TestIsPlain(t *testing.T) {
	good := []string{digest.FromString("a").String(), digest.SHA512.FromString("a").String()}
	all := append([]string{"", ":", "sha256", "sha256:", "md5:" + strings.Repeat("a", 32), digest.SHA384.FromString("a").String(), "sha256:" + strings.Repeat("a", 128), "sha512:" + strings.Repeat("a", 64)}, good...)
	for _, g := range good {
		all = append(all, g+"0", g[:len(g)-1], g[:len(g)-1]+"g", g[:len(g)-1]+"A", " "+g, strings.ToUpper(g), strings.Replace(g, ":", "-", 1), g[:len(g)-1]+"\n", g[:20]+"é"+g[22:])
	}
	for _, s := range all {
		d := digest.Digest(s)
		want := d.Validate() == nil && CheckAlgorithm(d.Algorithm()) == nil
		if isPlain(d) != want || (CheckDigest(d) == nil) != want {
			t.Errorf("%q: plain %v, checked %v, want %v", s, isPlain(d), CheckDigest(d), want)
		}
	}
}

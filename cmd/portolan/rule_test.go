package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPatterns(t *testing.T) {
	for in, want := range map[string][]string{
		"":               nil,
		"prod":           {"prod"},
		"a,b":            {"a", "b"},
		",a,,b,":         {"a", "b"},
		"team-{a,b},x":   {"team-{a,b}", "x"},
		"{a,{b,c}}/*,d":  {"{a,{b,c}}/*", "d"},
		"{a,b":           {"{a,b"},
		"v1.*,v[2-3],**": {"v1.*", "v[2-3]", "**"},
	} {
		if diff := cmp.Diff(want, patterns(in)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

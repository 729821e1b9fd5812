package main

import (
	"testing"

	"github.com/portolan/portolan/registryapi/mesh"
)

// TestSiteCheck_LastLine: who reads no more than the last line is not misled.
func TestSiteCheck_LastLine(t *testing.T) {
	well := mesh.PathTest{Test: "key", From: "fra", To: "sgp", Result: "ok"}
	shut := mesh.PathTest{Test: "data port", From: "fra", To: "sgp", Result: "failed"}
	unknown := mesh.PathTest{Test: "clock", From: "fra", To: "sgp", Result: "unknown"}
	there := mesh.PathTest{Test: "pause", From: "fra", To: "sgp", Result: "failed"}
	here := mesh.PathTest{Test: "pause", From: "sgp", To: "fra", Result: "failed"}
	for _, c := range []struct {
		tests []mesh.PathTest
		want  string
	}{
		{[]mesh.PathTest{well, shut, unknown}, "2 of 3 tests of the path between fra and sgp did not pass"},
		{[]mesh.PathTest{well, shut, there}, "2 of 3 tests of the path between fra and sgp did not pass"},
		{[]mesh.PathTest{well, there, well, there}, "the path between fra and sgp is well, but nothing that rules bring moves to sgp: it is paused (portolan transfer resume sgp)"},
		{[]mesh.PathTest{there, here, well}, "the path between fra and sgp is well, but nothing that rules bring moves to fra and sgp: they are paused (portolan transfer resume fra; portolan transfer resume sgp)"},
	} {
		if got := notPassed(mesh.SiteCheck{From: "fra", To: "sgp", Tests: c.tests}).Error(); got != c.want {
			t.Errorf("%+v:\n%s\nwant\n%s", c.tests, got, c.want)
		}
	}
}

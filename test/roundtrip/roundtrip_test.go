package roundtrip

import (
	"testing"
)

// TestRoundTrip runs each client against the same mesh, each with repositories
// of its own. Pulls start as soon as the push was acknowledged: the other site
// asks around for what it has not heard of yet.
func TestRoundTrip(t *testing.T) {
	b := newBed(t)
	for i, client := range []struct {
		name string
		trip func(t *testing.T, b *bed, from, to int)
	}{
		{"docker", docker},
		{"containerd", containerd},
		{"podman", podman},
		{"skopeo", skopeo},
		{"crane", crane},
		{"regctl", regctl},
		{"oras", orasLibrary},
		{"helm", helm},
		{"cosign", cosign},
		{"names by sha512", longNames},
	} {
		from := i % len(b.Sites)
		to := (from + 1) % len(b.Sites)
		t.Run(client.name, func(t *testing.T) { client.trip(t, b, from, to) })
	}
}

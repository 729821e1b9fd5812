package sync

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// TestAudit_WhatCouldNotBeForgotten: a vector that was dropped in part, or not at all, is
// dropped by the next audit, also if the project adds up.
func TestAudit_WhatCouldNotBeForgotten(t *testing.T) {
	var full atomic.Bool
	c, err := catalog.Open("", catalog.Options{InMemory: true, Space: func(catalog.Need) error {
		if full.Load() {
			return errors.New("the disk is full")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	pid := identity.NewProjectID()
	body := []byte("{}")
	if _, err := c.PutManifest(t.Context(), catalog.Put{
		PID: pid, Repo: "app", Digest: digest.FromBytes(body), MediaType: "application/vnd.oci.image.manifest.v1+json", Size: int64(len(body)), Bytes: body,
		Tags: []string{"1"}, Home: "fra", Actor: "user:admin",
	}); err != nil {
		t.Fatal(err)
	}
	s := &Sync{
		cat: c, log: slog.New(slog.DiscardHandler),
		forgetting: map[identity.ProjectID]bool{}, halfForgot: map[identity.ProjectID]bool{}, notForgot: make(chan struct{}, 1),
	}
	vector := func() catalog.Vector {
		t.Helper()
		v, err := c.Vector(pid)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := vector()
	s.auditAll(t.Context())
	if !vector().Equal(before) {
		t.Fatal("an audit dropped the vector of a project that adds up")
	}
	full.Store(true)
	if s.lostRows(t.Context(), pid, nil) || len(s.notForgot) != 1 {
		t.Fatal("a vector is dropped on a full disk, or nobody is told that it is not")
	}
	s.auditAll(t.Context())
	full.Store(false)
	if !vector().Equal(before) {
		t.Fatal("a full disk took a write")
	}
	s.auditAll(t.Context())
	if after := vector(); after.Dominates(before) || len(s.halfForgot) != 0 || len(s.forgetting) != 0 {
		t.Errorf("the vector %v was to be dropped, and is %v; %d projects are half done", before, after, len(s.halfForgot))
	}
	s.auditAll(t.Context())
	if len(s.halfForgot) != 0 {
		t.Error("what was dropped is half done again")
	}
}

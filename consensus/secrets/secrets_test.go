package secrets

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/portolan/portolan/node/identity"
)

func newIdentity(t *testing.T) *identity.Identity {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestBox_IsForOneNodeMeshKeyAndVersion(t *testing.T) {
	a, b := newIdentity(t), newIdentity(t)
	key, sig := a.BoxKey()
	want := NewKey()
	l := Label{Mesh: identity.NewMeshID(), Kind: 2, Version: 3, Node: a.ID}
	box, err := Box(l, key, sig, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenBox(a, l, box); err != nil || got != want {
		t.Fatalf("the box does not open: %v", err)
	}
	other := map[string]Label{
		"mesh": {identity.NewMeshID(), l.Kind, l.Version, l.Node}, "kind": {l.Mesh, 1, l.Version, l.Node}, "version": {l.Mesh, l.Kind, 4, l.Node},
	}
	for what, l := range other {
		if _, err := OpenBox(a, l, box); err == nil {
			t.Errorf("the box opens as that of another %s", what)
		}
	}
	if _, err := OpenBox(b, l, box); err == nil {
		t.Error("another node opens the box")
	}
	// A box key that somebody else put into the record gets no key.
	foreign, _ := b.BoxKey()
	if _, err := Box(l, foreign, sig, want); err == nil {
		t.Error("a box was made to a key that its node did not sign")
	}
}

func TestSeal_HoldsToItsPlace(t *testing.T) {
	k := NewKey()
	keys := func(v uint32) (Key, bool) { return k, v == 7 }
	p := Place{Object: "upstream/12", Field: "password"}
	sealed, err := Seal(k, 7, p, []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := KeyVersion(sealed); err != nil || v != 7 {
		t.Fatalf("version %d, %v", v, err)
	}
	if got, err := Open(keys, p, sealed); err != nil || string(got) != "hunter2" {
		t.Fatalf("%q, %v", got, err)
	}
	if bytes.Contains(sealed, []byte("hunter2")) {
		t.Error("the value is there in the clear")
	}
	for _, q := range []Place{{"upstream/13", "password"}, {"upstream/12", "token"}, {"upstream/1", "2password"}, {"upstream/12password", ""}} {
		if _, err := Open(keys, q, sealed); !errors.Is(err, ErrSealed) {
			t.Errorf("opens at %s: %v", q, err)
		}
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := Open(func(uint32) (Key, bool) { return k, true }, p, bad); !errors.Is(err, ErrSealed) {
			t.Errorf("opens with byte %d changed: %v", i, err)
		}
		if _, err := Open(keys, p, sealed[:i]); !errors.Is(err, ErrSealed) {
			t.Errorf("opens when cut to %d bytes: %v", i, err)
		}
	}
	if _, err := Open(func(uint32) (Key, bool) { return Key{}, false }, p, sealed); err == nil || !strings.Contains(err.Error(), "version 7") {
		t.Errorf("without the key: %v", err)
	}
}

func TestKey_IsNeverPrinted(t *testing.T) {
	k := Key{0: 0xab, 31: 0xcd}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("key", "key", k)
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %x %s %d", k, k, k, k, k, k), log.String()} {
		if strings.Contains(strings.ToLower(s), "ab") || strings.Contains(s, "171") {
			t.Errorf("%q shows the key", s)
		}
	}
}

// FuzzOpen: whatever comes from the state, only what was sealed for the place
// opens.
func FuzzOpen(f *testing.F) {
	k := Key{1, 2, 3}
	p := Place{Object: "ldap", Field: "bind_password"}
	sealed, err := Seal(k, 1, p, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, "ldap", "bind_password")
	f.Add(sealed[:Overhead-1], "ldap", "")
	f.Add([]byte{}, "", "")
	f.Fuzz(func(t *testing.T, b []byte, object, field string) {
		got, err := Open(func(uint32) (Key, bool) { return k, true }, Place{object, field}, b)
		if err == nil && (!bytes.Equal(b, sealed) || object != p.Object || field != p.Field) {
			t.Fatalf("%x opens at %q %q to %q", b, object, field, got)
		}
		if err != nil && !errors.Is(err, ErrSealed) {
			t.Fatal(err)
		}
		if v, err := KeyVersion(b); (err == nil) != (len(b) >= Overhead && b[0] == 1) {
			t.Fatalf("version %d, %v", v, err)
		}
	})
}

package access

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

func TestPassword(t *testing.T) {
	h, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(h, "$argon2id$v=19$m=") {
		t.Errorf("hash %q is not a PHC string", h)
	}
	if ok, err := VerifyPassword(h, "correct horse"); !ok || err != nil {
		t.Errorf("right password: %v, %v", ok, err)
	}
	if ok, err := VerifyPassword(h, "battery staple"); ok || err != nil {
		t.Errorf("wrong password: %v, %v", ok, err)
	}
	for _, bad := range []string{"", "$argon2id$", "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=19456,t=0,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if _, err := VerifyPassword(bad, "x"); !errors.Is(err, ErrPasswordHash) {
			t.Errorf("hash %q: %v, want ErrPasswordHash", bad, err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", MaxPasswordBytes+1)} {
		if _, err := HashPassword(bad); err == nil {
			t.Errorf("a password of %d bytes was taken", len(bad))
		}
	}
}

func TestLogin_BacksOffPerAccountAndAddress(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	if _, err := a.Authenticate(get("/", "admin", "secret")); err != nil {
		t.Fatal(err)
	}
	for range freeFailures {
		if _, err := a.Authenticate(get("/", "admin", "guess")); !errors.Is(err, ErrCredentials) {
			t.Fatalf("a wrong password: %v", err)
		}
	}
	var busy *TooMany
	if _, err := a.Authenticate(get("/", "admin", "guess")); !errors.As(err, &busy) || busy.RetryAfter <= 0 {
		t.Fatalf("after %d failures: %v, want *TooMany", freeFailures, err)
	}
	if _, err := a.Authenticate(get("/", "admin", "secret")); err != nil {
		t.Errorf("a password that was checked before must go on working: %v", err)
	}
	other := get("/", "admin", "guess")
	other.RemoteAddr = "198.51.100.7:1234"
	if _, err := a.Authenticate(other); !errors.Is(err, ErrCredentials) {
		t.Errorf("from another address: %v, want ErrCredentials", err)
	}
	m.now = m.now.Add(firstWait)
	if _, err := a.Authenticate(get("/", "admin", "guess")); !errors.Is(err, ErrCredentials) {
		t.Errorf("after the wait: %v, want ErrCredentials", err)
	}
}

func TestLogin_RemembersLittleOfAFailure(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	r := get("/", strings.Repeat("A", 60_000), "guess")
	r.RemoteAddr = "[2001:db8:1:2:3:4:5:6]:1234"
	if _, err := a.Authenticate(r); !errors.Is(err, ErrCredentials) {
		t.Fatal(err)
	}
	for _, k := range a.failures.by.Keys() {
		if len(k.account) > MaxNameBytes || k.addr != netip.MustParseAddr("2001:db8:1:2::") {
			t.Errorf("remembered: %d bytes of name from %s", len(k.account), k.addr)
		}
	}
	if n := a.failures.by.Len(); n != 1 {
		t.Errorf("%d failures are remembered, want 1", n)
	}
}

func TestLogin_RefusesWhenTooManyWait(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	for range cap(a.queue) {
		a.queue <- struct{}{}
	}
	var busy *TooMany
	if _, err := a.Authenticate(get("/", "admin", "secret")); !errors.As(err, &busy) {
		t.Errorf("full queue: %v, want *TooMany", err)
	}
}

func TestLogin_ManyAtOnce(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := a.Authenticate(get("/", "admin", "secret")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func FuzzPHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parsePHC(s)
		if err == nil && (h.memory > maxArgonMemoryKiB || h.time == 0 || h.threads == 0 || len(h.salt) < 8) {
			t.Fatalf("%q is %+v", s, h)
		}
	})
}

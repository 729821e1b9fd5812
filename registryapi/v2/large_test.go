package v2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// padded makes a manifest larger, and nothing else.
func padded(m []byte, size int) []byte {
	return append(bytes.Clone(m), strings.Repeat(" ", size-len(m))...)
}

// Who sends many large manifests at once is refused the next; others are not, and
// neither are his small ones.
func TestLarge_OfOneUser(t *testing.T) {
	s := newSite(t)
	config := []byte("{}")
	s.push("prod/app", config)
	put := func(user string, size int, status int) exchange {
		t.Helper()
		return s.do(user, "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(padded(image(config), size)), "Content-Type", imageType).want(t, status)
	}
	for range largePerUser {
		put("dev", largeManifest+1, http.StatusCreated) // one after the other is no matter
	}
	actor := "user:dev"
	for range largePerUser {
		if err := s.v2.large.begin(actor); err != nil {
			t.Fatal(err)
		}
	}
	if e := put("dev", largeManifest+1, http.StatusTooManyRequests); e.Header.Get("Retry-After") == "" || !bytes.Contains(e.body, []byte("wait for one to end")) {
		t.Errorf("%v %s", e.Header, e.body)
	}
	put("dev", largeManifest-1, http.StatusCreated)
	put("admin", largeManifest+1, http.StatusCreated)
	s.v2.large.end(actor)
	put("dev", 4<<20, http.StatusCreated)
	put("dev", 4<<20+1, http.StatusRequestEntityTooLarge) // and it gives its place back
	put("dev", 4<<20, http.StatusCreated)
	for range largePerUser - 1 {
		s.v2.large.end(actor)
	}
	if n := len(s.v2.large.of); n != 0 {
		t.Errorf("%d users are still counted", n)
	}
}

func TestLarge_ParsedInTurn(t *testing.T) {
	l := newLarge()
	for range cap(l.parsing) {
		l.parsing <- struct{}{}
	}
	m := image([]byte("{}"))
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := l.parse(ctx, imageType, m); err != nil {
		t.Errorf("a small one waits: %v", err)
	}
	parsed := make(chan error, 1)
	go func() {
		_, err := l.parse(ctx, imageType, padded(m, largeManifest+1))
		parsed <- err
	}()
	cancel()
	if err := <-parsed; !errors.Is(err, context.Canceled) {
		t.Errorf("a large one of a client that left: %v", err)
	}
	<-l.parsing
	if _, err := l.parse(t.Context(), imageType, padded(m, largeManifest+1)); err != nil {
		t.Error(err)
	}
	if n := len(l.parsing); n != cap(l.parsing)-1 {
		t.Errorf("%d places are taken, want %d", n, cap(l.parsing)-1)
	}
}

// A page of referrers does not read more than its share, however little it shows.
func TestReferrers_LargeOnes(t *testing.T) {
	s := newSite(t)
	config := []byte("{}")
	s.push("prod/app", config)
	subject := image(config)
	const size, count = 4 << 20, 6 // four are a page
	for i := range count {
		m := padded(referrer(subject, "application/vnd.example.large", config, strings.Repeat("x", i+1)), size)
		s.do("dev", "PUT", "/v2/prod/app/manifests/"+digest.FromBytes(m).String(), bytes.NewReader(m), "Content-Type", imageType).want(t, 201)
	}
	all := s.walk(t, "/v2/prod/app/referrers/"+digest.FromBytes(subject).String(), "", referrersRead/size, func(b []byte) (page []string) {
		var index ocispec.Index
		if err := json.Unmarshal(b, &index); err != nil {
			t.Fatal(err)
		}
		for _, d := range index.Manifests {
			page = append(page, d.Annotations["note"])
		}
		return page
	})
	if len(all) != count || strings.Contains(strings.Join(all, ","), ",,") {
		t.Errorf("%q", all)
	}
}

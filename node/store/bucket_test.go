package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/blobs/drivers"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/bucket"
)

func s3(t testing.TB, s *bucket.Server, change map[string]string) *blobs.Backend {
	t.Helper()
	p := s.Parameters()
	maps.Copy(p, change)
	b, err := drivers.New(t.Context(), "s3", p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openOn(t testing.TB, dir string, b *blobs.Backend, now func() time.Time) (*Store, error) {
	t.Helper()
	return Open(t.Context(), Config{
		Dir: filepath.Join(dir, "store"), Identity: newIdentity(t, dir),
		Logger: slog.New(slog.DiscardHandler), Now: now, Bucket: b,
	})
}

func mustOpenOn(t testing.TB, dir string, b *blobs.Backend) *Store {
	t.Helper()
	s, err := openOn(t, dir, b, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func push(t testing.TB, s *Store, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	if _, err := upload(t, s).Finish(t.Context(), bytes.NewReader(b), d, link); err != nil {
		t.Fatal(err)
	}
	return d
}

func read(t testing.TB, s *Store, d digest.Digest) ([]byte, error) {
	t.Helper()
	b, err := s.Open(t.Context(), d)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(b)
	return got, errors.Join(err, b.Close())
}

func mustRead(t testing.TB, s *Store, want []byte) {
	t.Helper()
	got, err := read(t, s, digest.FromBytes(want))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes: %v", len(got), len(want), err)
	}
}

// rowStays: what was acknowledged is still known.
func rowStays(t testing.TB, s *Store, d digest.Digest) {
	t.Helper()
	if _, err := s.Stat(t.Context(), d); err != nil {
		t.Fatalf("the row is gone: %v", err)
	}
}

func away(t testing.TB, err error) *Unavailable {
	t.Helper()
	var u *Unavailable
	if !errors.As(err, &u) || !errors.Is(err, ErrUnavailable) {
		t.Fatalf("%v, want an Unavailable", err)
	}
	for _, secret := range []string{"a-secret-of-the-tests", "portolan-tests"} {
		if strings.Contains(u.Error(), secret) {
			t.Fatalf("%q shows a secret", u)
		}
	}
	return u
}

// TestBucket_NothingLists: what clients and peers wait for is put, part, create,
// complete and get. A blob whose list is known is one request.
func TestBucket_NothingLists(t *testing.T) {
	server := bucket.Start(t)
	dir := t.TempDir()
	began := time.Now() // stands: the bucket is not proven again meanwhile
	s, err := openOn(t, dir, s3(t, server, nil), func() time.Time { return began })
	if err != nil {
		t.Fatal(err)
	}
	server.Asked()
	asked := func(what string, want map[string]int) {
		t.Helper()
		if got := server.Asked(); !maps.Equal(got, want) {
			t.Errorf("%s: the server was asked %v, want %v", what, got, want)
		}
	}
	small, middle, large := content(1, 3<<20), content(2, 100_000), content(3, 23<<20)
	push(t, s, small)
	asked("a small blob and its list", map[string]int{"put": 2})
	push(t, s, middle)
	asked("a blob of one unit", map[string]int{"put": 1})
	push(t, s, large)
	asked("a large blob and its list", map[string]int{"put": 1, "create": 1, "part": 3, "complete": 1})
	push(t, s, large)
	asked("the same again", map[string]int{"get": 1})
	mustRead(t, s, large)
	asked("a read", map[string]int{"get": 1})
	if _, err := s.Stat(t.Context(), digest.FromBytes(large)); err != nil {
		t.Fatal(err)
	}
	asked("its size", map[string]int{})
	closeStore(t, s)

	s = mustOpenOn(t, dir, s3(t, server, nil))
	defer closeStore(t, s)
	server.Asked()
	mustRead(t, s, large)
	asked("the first read after a restart, with the list", map[string]int{"get": 2})
	mustRead(t, s, large)
	asked("the second", map[string]int{"get": 1})
	if _, err := s.Open(t.Context(), digest.FromBytes(content(9, 70_000))); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	asked("one that was never there", map[string]int{})
}

func TestBucket_RefusedStarts(t *testing.T) {
	server := bucket.Start(t)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		change map[string]string
		want   string
	}{
		"another secret": {map[string]string{"secretkey": "wrong-wrong-wrong"}, "SignatureDoesNotMatch"},
		"another key":    {map[string]string{"accesskey": "nobody"}, "access key"},
		"no such bucket": {map[string]string{"bucket": "other"}, "NoSuchBucket"},
	} {
		s, err := openOn(t, dir, s3(t, server, c.change), time.Now)
		if err == nil {
			closeStore(t, s)
			t.Fatalf("%s: it opened", name)
		}
		if u := away(t, err); !u.Refused || !strings.Contains(u.Cause, c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// None of these decided where the store is.
	s := mustOpenOn(t, dir, s3(t, server, nil))
	b := content(1, 100_000)
	push(t, s, b)
	closeStore(t, s)

	for name, c := range map[string]struct {
		dir  string
		b    *blobs.Backend
		want string
	}{
		"on its disk":          {dir, nil, `keeps its blobs in "s3 layers/store", not on its disk`},
		"in another directory": {dir, s3(t, server, map[string]string{"rootdirectory": "/x"}), "keeps its blobs in"},
		"by another store":     {t.TempDir(), s3(t, server, nil), "belongs to store"},
		"with a wrong secret":  {dir, s3(t, server, map[string]string{"secretkey": "wrong-wrong-wrong"}), "SignatureDoesNotMatch"},
	} {
		s, err := openOn(t, c.dir, c.b, time.Now)
		if err == nil {
			closeStore(t, s)
			t.Fatalf("%s: it opened", name)
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	disk := t.TempDir()
	closeStore(t, openAt(t, disk, time.Now))
	if _, err := openOn(t, disk, s3(t, server, map[string]string{"rootdirectory": "/y"}), time.Now); err == nil || !strings.Contains(err.Error(), "keeps its blobs on its disk") {
		t.Errorf("a disk's store in a bucket: %v", err)
	}
	s = mustOpenOn(t, dir, s3(t, server, nil))
	defer closeStore(t, s)
	mustRead(t, s, b)
}

// TestBucket_DiesMidUpload: the client's request fails, its session keeps every
// byte, and the end alone is repeated.
func TestBucket_DiesMidUpload(t *testing.T) {
	server := bucket.Start(t)
	dir := t.TempDir()
	clock := time.Now()
	s, err := openOn(t, dir, s3(t, server, nil), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { closeStore(t, s) }()
	before, b := content(1, 100_000), content(2, 37<<20)
	push(t, s, before)
	d := digest.FromBytes(b)
	u := upload(t, s)
	if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	server.OnRequest(func(kind string, n int, _ *http.Request) int {
		if kind == "part" && n == 3 {
			server.Kill()
		}
		return 0
	})
	_, err = u.Commit(t.Context(), d, link)
	if u := away(t, err); u.Refused {
		t.Fatal(err)
	}
	server.OnRequest(nil)
	if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
		t.Fatalf("half a blob is there: %v", err)
	}
	if u.Offset() != int64(len(b)) {
		t.Fatalf("the session is at %d of %d", u.Offset(), len(b))
	}
	// The node dies, too.
	id := u.ID()
	closeStore(t, s)
	if s, err = openOn(t, dir, s3(t, server, nil), func() time.Time { return clock }); err != nil {
		t.Fatalf("a start while the bucket is away: %v", err)
	}
	if u, err = s.Upload(t.Context(), id); err != nil || u.Offset() != int64(len(b)) {
		t.Fatalf("the session after a restart: %v", err)
	}
	_, err = u.Commit(t.Context(), d, link)
	away(t, err)
	_, err = read(t, s, digest.FromBytes(before))
	away(t, err)
	rowStays(t, s, digest.FromBytes(before))
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, before)
	if n, err := server.Uploads(); err != nil || n == 0 {
		t.Fatalf("%d uploads were left in the bucket, %v", n, err)
	}
	await(t, func() error { _, err := u.Commit(t.Context(), d, link); return err })
	mustRead(t, s, b)
	// What the dead server was sent goes with a later sweep.
	clock = clock.Add(2 * time.Hour)
	s.Sweep(t.Context())
	if n, err := server.Uploads(); err != nil || n != 0 {
		t.Fatalf("%d uploads are left in the bucket, %v", n, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "store", "doubtful")); len(left) > 0 {
		t.Fatalf("notes are left: %v", left)
	}
	mustRead(t, s, b)
}

// await repeats what is refused for a while after a bucket came back.
func await(t testing.TB, fn func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// TestBucket_LostAnswer: the object is there and nobody was told. A repeated
// commit is as good as the first; without one the sweep removes the object.
func TestBucket_LostAnswer(t *testing.T) {
	server := bucket.Start(t)
	clock := time.Now()
	s, err := openOn(t, t.TempDir(), s3(t, server, nil), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	again, never := content(1, 100_000), content(2, 100_000)
	for _, b := range [][]byte{again, never} {
		ctx, leave := context.WithCancel(t.Context())
		server.OnRequest(func(kind string, _ int, r *http.Request) int {
			if kind == "put" {
				// The server gets all of it, and the node hears nothing.
				whole, err := io.ReadAll(r.Body)
				if err != nil {
					return http.StatusTeapot
				}
				r.Body = io.NopCloser(bytes.NewReader(whole))
				leave()
			}
			return 0
		})
		u := upload(t, s)
		if _, err := u.Finish(ctx, bytes.NewReader(b), digest.FromBytes(b), link); err == nil {
			t.Fatal("it was acknowledged")
		}
		server.OnRequest(nil)
		if &b[0] == &again[0] {
			if _, err := u.Commit(t.Context(), digest.FromBytes(b), link); err != nil {
				t.Fatal(err)
			}
		}
	}
	// An object without a row, whatever became of the request above.
	d := digest.FromBytes(never)
	path := server.Path("store/blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded())
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, never, 0o640)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
		t.Fatalf("an object without a row is served: %v", err)
	}
	clock = clock.Add(2 * time.Hour)
	s.Sweep(t.Context())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the sweep left an object without a row: %v", err)
	}
	mustRead(t, s, again)
}

func TestBucket_CollectedAndFetched(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	defer closeStore(t, s)
	b := content(1, 3<<20)
	d := digest.FromBytes(b)
	h := units.NewHasher(digest.SHA256)
	_, _ = h.Write(b)
	list, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	rec, err := units.Sign(list, s.node.ID, s.node)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.BeginFetch(t.Context(), rec, list)
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Units() {
		off, n := list.Span(i)
		if err := p.Put(i, b[off:off+n]); err != nil {
			t.Fatal(err)
		}
	}
	server.Kill()
	away(t, p.Commit(t.Context(), catalog.Placed))
	if err := p.Close(); err != nil { // kept for a resume
		t.Fatal(err)
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	if p, err = s.BeginFetch(t.Context(), rec, list); err != nil || !p.Complete() {
		t.Fatalf("%d units are missing, %v", p.Missing(), err)
	}
	if err := p.Commit(t.Context(), catalog.Placed); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := p.ReadAt(got, 5); err != nil || !bytes.Equal(got, b[5:15]) {
		t.Fatalf("after the commit: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.files.Dir() + "/partial"); len(left) > 0 {
		t.Fatalf("staged files are left: %v", left)
	}
	mustRead(t, s, b)
	if err := s.Collect(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"blobs", "units"} {
		path := server.Path("store/" + kind + "/sha256/" + d.Encoded()[:2] + "/" + d.Encoded())
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestBucket_Large: many parts, and ranges at odd places.
func TestBucket_Large(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 210 MiB")
	}
	server := bucket.Start(t)
	dir := t.TempDir()
	s := mustOpenOn(t, dir, s3(t, server, nil))
	b := content(1, 210<<20+12345)
	d := push(t, s, b)
	if asked := server.Asked(); asked["part"] != 22 || asked["list"]+asked["head"] > 2 { // of the probe at the start
		t.Errorf("it took %v", asked)
	}
	closeStore(t, s)
	s = mustOpenOn(t, dir, s3(t, server, nil))
	defer closeStore(t, s)
	for _, r := range []struct{ off, n int64 }{{0, 1}, {1<<20 - 3, 7}, {77_777_777, 3_333_333}, {210<<20 + 12340, 100}, {209 << 20, 2 << 20}} {
		open, err := s.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open.Seek(r.off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.LimitReader(open, r.n))
		end := min(r.off+r.n, int64(len(b)))
		if err != nil || !bytes.Equal(got, b[r.off:end]) {
			t.Errorf("%d bytes at %d: got %d, %v", r.n, r.off, len(got), err)
		}
		at := make([]byte, end-r.off)
		if _, err := open.ReadAt(at, r.off); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(at, got) {
			t.Errorf("ReadAt %d: %v", r.off, err)
		}
		if err := open.Close(); err != nil {
			t.Error(err)
		}
	}
	mustRead(t, s, b)
}

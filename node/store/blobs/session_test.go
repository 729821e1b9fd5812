package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// hall is a store whose clock the test turns.
type hall struct {
	*Store
	cfg Config
	now time.Time
}

func openHall(t testing.TB, most, share int) *hall {
	t.Helper()
	h := &hall{now: time.Now()} // files have the machine's time
	h.cfg = Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return h.now },
		MaxUpload: 32 << 20, MaxUploads: most, MaxPerOwner: share, SmallMax: testSmall}
	h.restart(t)
	return h
}

func (h *hall) restart(t testing.TB) {
	t.Helper()
	s, err := Open(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.Store = s
}

func (h *hall) begin(t testing.TB, name string) *Upload {
	t.Helper()
	u, err := h.CreateUploadFor(OwnerOf(name))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (h *hall) sweep(t testing.TB) Swept {
	t.Helper()
	did, err := h.Sweep(context.Background(), Keep{Uploads: 24 * time.Hour, Partials: time.Hour, Quarantine: time.Hour},
		func(digest.Digest, func() error) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return did
}

func (h *hall) files(t testing.TB) int {
	t.Helper()
	names, err := readNames(filepath.Join(h.cfg.Dir, "uploads"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// end cancels a session as a client does.
func end(t testing.TB, u *Upload) {
	t.Helper()
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	if err := u.Discard(); err != nil {
		t.Fatal(err)
	}
}

// What is given to a client outlives a restart, with bytes or without; what
// begins and ends in one request leaves nothing on the way.
func TestSession_KeptOrNot(t *testing.T) {
	h := openHall(t, 10, 0)
	passing, kept := h.begin(t, "ann"), h.begin(t, "ann")
	if n := h.files(t); n != 0 {
		t.Errorf("%d files of uploads within a request", n)
	}
	if err := kept.Keep(); err != nil {
		t.Fatal(err)
	}
	h.restart(t)
	if _, err := h.Upload(passing.ID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("one within a request: %v", err)
	}
	back := mustUpload(t, h, kept.ID())
	add(t, back, []byte("some"))
	end(t, back)
	if _, err := h.Upload(kept.ID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that ended: %v", err)
	}
	if n := h.files(t); n != 0 || h.nUploads != 0 || len(h.shares) != 0 {
		t.Errorf("%d files, %d sessions, shares %v are left", n, h.nUploads, h.shares)
	}
}

func TestSession_Shares(t *testing.T) {
	h := openHall(t, 10, 4)
	var anns []*Upload
	for range 4 {
		u := h.begin(t, "ann")
		add(t, u, []byte("some"))
		anns = append(anns, u)
		h.now = h.now.Add(time.Minute)
	}
	full := func(when string) {
		t.Helper()
		if _, err := h.CreateUploadFor(OwnerOf("ann")); !errors.Is(err, ErrUploadShare) {
			t.Fatalf("%s: %v, want ErrUploadShare", when, err)
		}
	}
	full("a fifth of ann's")
	h.begin(t, "bob") // has nothing to do with it
	h.restart(t)
	full("after a restart")
	for _, u := range anns { // as clients that go on
		if _, err := h.Upload(u.ID()); err != nil {
			t.Fatal(err)
		}
	}
	full("while all are fresh")

	h.now = h.now.Add(idleSession - 5*time.Minute) // the files are 59 minutes old
	full("while none is idle for long enough")
	add(t, mustUpload(t, h, anns[0].ID()), []byte(" more")) // the oldest is at work
	for _, u := range anns[2:] {
		add(t, mustUpload(t, h, u.ID()), nil)
	}
	h.now = h.now.Add(2 * time.Minute)
	h.begin(t, "ann")
	if _, err := h.Upload(anns[1].ID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("the one that was idle for longest did not give way: %v", err)
	}
	if u := mustUpload(t, h, anns[0].ID()); u.Offset() != 9 {
		t.Errorf("the one that went on is at %d", u.Offset())
	}
	full("with nothing idle left")

	for i := range 10 - h.nUploads {
		h.begin(t, fmt.Sprint("somebody ", i))
	}
	if _, err := h.CreateUploadFor(OwnerOf("carl")); !errors.Is(err, ErrTooManyUploads) {
		t.Errorf("above the store's bound: %v", err)
	}
}

// A crashed client's sessions give way after a restart as well, though nobody has
// asked for them since. Commits that were cut short are left to the sweep.
func TestSession_GiveWayAfterARestart(t *testing.T) {
	h := openHall(t, 10, 3)
	var anns []*Upload
	for i := range 3 {
		u := h.begin(t, "ann")
		add(t, u, []byte("some"))
		at := h.now.Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(u.path(extData), at, at); err != nil {
			t.Fatal(err)
		}
		anns = append(anns, u)
	}
	if err := os.WriteFile(anns[0].path(extCommit), []byte("note"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart(t)
	if _, err := h.CreateUploadFor(OwnerOf("ann")); !errors.Is(err, ErrUploadShare) {
		t.Fatalf("while all are fresh: %v", err)
	}
	h.now = h.now.Add(idleSession + 5*time.Minute)
	busy := mustUpload(t, h, anns[2].ID())
	if err := busy.Acquire(); err != nil {
		t.Fatal(err)
	}
	h.begin(t, "ann")
	if _, err := h.Upload(anns[1].ID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("the one that could did not give way: %v", err)
	}
	if _, err := h.CreateUploadFor(OwnerOf("ann")); !errors.Is(err, ErrUploadShare) {
		t.Errorf("one at work or in a commit gave way: %v", err)
	}
	busy.Release()
	mustUpload(t, h, anns[0].ID())
	if _, err := h.CreateUploadFor(OwnerOf("ann")); !errors.Is(err, ErrUploadShare) {
		t.Error(err)
	}
	if len(h.earlier) != 0 {
		t.Errorf("remembered from before the start: %v", h.earlier)
	}
}

// Slow clients hold a bounded number of large buffers; those beyond go on with
// small ones.
func TestAppend_Buffers(t *testing.T) {
	h := openHall(t, 10, 0)
	h.busy = make(chan struct{}, 1)
	want := content(3, 1<<20)
	slow, quick := h.begin(t, "ann"), h.begin(t, "bob")
	hold := &meter{src: bytes.NewReader(want), wait: make(chan struct{}), begun: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		appendFrom(t, slow, hold)
	}()
	<-hold.begun
	other := &meter{src: bytes.NewReader(want)}
	appendFrom(t, quick, other)
	close(hold.wait)
	<-done
	if hold.largest != copyBuffer || other.largest != smallBuffer {
		t.Errorf("buffers of %d and %d bytes", hold.largest, other.largest)
	}
	third := &meter{src: bytes.NewReader(want)}
	again := h.begin(t, "ann")
	appendFrom(t, again, third)
	if third.largest != copyBuffer {
		t.Errorf("a buffer of %d bytes once there is room", third.largest)
	}
	for _, u := range []*Upload{slow, again} {
		if u.Offset() != int64(len(want)) {
			t.Errorf("an upload is at %d", u.Offset())
		}
		end(t, u)
	}
	install(t, h.Store, quick, want)
}

func appendFrom(t *testing.T, u *Upload, r io.Reader) {
	if err := u.Acquire(); err != nil {
		t.Error(err)
		return
	}
	defer u.Release()
	if _, err := u.Append(context.Background(), r, false); err != nil {
		t.Error(err)
	}
}

// meter notes into how much it is read, and can be made to wait.
type meter struct {
	src         io.Reader
	begun, wait chan struct{}
	first       sync.Once
	largest     int
}

func (m *meter) Read(p []byte) (int, error) {
	m.largest = max(m.largest, len(p))
	if m.wait != nil {
		m.first.Do(func() { close(m.begun) })
		<-m.wait
	}
	return m.src.Read(p)
}

func mustUpload(t testing.TB, h *hall, id string) *Upload {
	t.Helper()
	u, err := h.Upload(id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A hundred thousand attempts of a hundred users: each gets a share, all of them
// what the store takes, and nothing is left of them when they have expired.
func TestSession_HundredThousand(t *testing.T) {
	attempts, most, share := 100_000, 10_000, 150
	if testing.Short() {
		attempts, most, share = 10_000, 1_000, 15
	}
	h := openHall(t, most, share)
	before := heap()
	open := 0
	for i := range attempts {
		u, err := h.CreateUploadFor(OwnerOf(fmt.Sprint("user ", i%100)))
		if errors.Is(err, ErrTooManyUploads) || errors.Is(err, ErrUploadShare) {
			continue
		}
		if err == nil {
			err = u.Keep()
		}
		if err != nil {
			t.Fatal(err)
		}
		open++
	}
	each := float64(heap()-before) / float64(most)
	t.Logf("%.0f bytes of memory a session", each)
	if each > 512 {
		t.Errorf("%.0f bytes of memory a session, want 512 at most", each)
	}
	if open != most || h.files(t) != most {
		t.Errorf("%d sessions, %d files, want %d", open, h.files(t), most)
	}
	h.restart(t)
	if _, err := h.CreateUploadFor(OwnerOf("bob")); !errors.Is(err, ErrTooManyUploads) {
		t.Errorf("one more, after a restart: %v", err)
	}
	h.now = h.now.Add(idleSession + time.Minute)
	if did := h.sweep(t); did.Uploads != most || h.files(t) != 0 {
		t.Errorf("swept %d, %d files are left", did.Uploads, h.files(t))
	}
	if h.nUploads != 0 || len(h.uploads) != 0 || len(h.shares) != 0 {
		t.Errorf("%d sessions, %d handles, shares %v are left", h.nUploads, len(h.uploads), h.shares)
	}
	h.begin(t, "bob")
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Those with bytes stay for their day, and go with all their files.
func TestSession_ExpiresByItsBytes(t *testing.T) {
	h := openHall(t, 10, 0)
	add(t, h.begin(t, "ann"), []byte("some"))
	if err := h.begin(t, "ann").Keep(); err != nil {
		t.Fatal(err)
	}
	h.begin(t, "ann") // of a request that nobody finished
	h.now = h.now.Add(2 * idleSession)
	if did := h.sweep(t); did.Uploads != 2 || h.files(t) == 0 {
		t.Errorf("after two hours: %+v, %d files", did, h.files(t))
	}
	h.restart(t) // the file's own time counts now
	h.now = h.now.Add(24 * time.Hour)
	if did := h.sweep(t); did.Uploads != 1 || h.files(t) != 0 {
		t.Errorf("after a day: %+v, %d files", did, h.files(t))
	}
	if h.nUploads != 0 {
		t.Errorf("%d sessions are left", h.nUploads)
	}
}

// BenchmarkOpen_TenThousandSessions is what a start costs with as many sessions
// as the default allows.
func BenchmarkOpen_TenThousandSessions(b *testing.B) {
	h := openHall(b, 10_000, 0)
	for range 10_000 {
		name := filepath.Join(h.cfg.Dir, "uploads", newID(OwnerOf("ann"))+extData)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		h.restart(b)
	}
	if h.nUploads != 10_000 {
		b.Fatalf("%d sessions", h.nUploads)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(newID(OwnerOf("ann")), "ann")
	f.Add("4a3f39f6-5f8a-4b1c-9d57-9d2a5fd5a1c4", "")
	f.Add("{018f0000-0000-8000-8000-000000000000}", "bob")
	f.Add("../../etc/passwd", "a/b")
	f.Fuzz(func(t *testing.T, id, name string) {
		if owner, err := parseID(newID(OwnerOf(name))); err != nil || owner != OwnerOf(name) || owner == NodeOwner {
			t.Fatalf("%q: %d, %v", name, owner, err)
		}
		if _, err := parseID(id); err == nil && (len(id) != 36 || filepath.Base(id) != id || strings.ToLower(id) != id) {
			t.Fatalf("%q is taken", id)
		}
	})
}

package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
)

// script is a stream whose other end is a byte string.
type script struct {
	in    *bytes.Reader
	out   bytes.Buffer
	reset bool
}

func (s *script) Read(p []byte) (int, error)      { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)     { return s.out.Write(p) }
func (s *script) SetIdle(time.Duration)           {}
func (s *script) SetReadDeadline(time.Time) error { return nil }
func (s *script) Close() error                    { return nil }
func (s *script) Reset() error                    { s.reset = true; return nil }

// oneBlob is a source with a blob in memory.
type oneBlob struct {
	data []byte
	rec  units.Record
	list *units.List
	// arriving: the record is of a blob that is on its way again.
	arriving bool
}

type memory struct{ *bytes.Reader }

func (memory) Close() error   { return nil }
func (memory) File() *os.File { return nil }

func (o *oneBlob) Open(_ context.Context, d digest.Digest, _ identity.ProjectID) (store.Blob, error) {
	if d != o.rec.Digest {
		return nil, store.ErrNotFound
	}
	return memory{bytes.NewReader(o.data)}, nil
}

func (*oneBlob) Damaged() uint64          { return 0 }
func (*oneBlob) Doubt(digest.Digest) bool { return false }

func (o *oneBlob) Record(context.Context, digest.Digest) (units.Record, *units.List, bool, error) {
	return o.rec, o.list, !o.arriving, nil
}

func newOneBlob(t testing.TB, size int) (*oneBlob, *identity.Identity) {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := &oneBlob{data: content(size)}
	h := units.NewHasher(digest.SHA256)
	_, _ = h.Write(o.data)
	if o.list, err = h.List(); err != nil {
		t.Fatal(err)
	}
	if o.rec, err = units.Sign(o.list, id.ID, id); err != nil {
		t.Fatal(err)
	}
	return o, id
}

func (o *oneBlob) server() *server {
	return &server{
		src:     o,
		access:  func(context.Context, identity.NodeID, digest.Digest, identity.ProjectID) bool { return true },
		known:   func(identity.NodeID) bool { return true },
		log:     slog.New(slog.DiscardHandler),
		metrics: newMetrics(&Swarm{}),
		buffers: sync.Pool{New: newBuffer},
	}
}

func frame(t testing.TB, m proto.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := peer.WriteMsg(&b, m, maxMessage); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestServer_RequestsThatEndBadly(t *testing.T) {
	o, _ := newOneBlob(t, 3*mib+1)
	d, p := o.rec.Digest.String(), project[:]
	oversized := binary.BigEndian.AppendUint32(nil, 1<<31)
	for name, c := range map[string]struct {
		in     []byte
		status Status
		reset  bool
	}{
		"garbage":                 {in: []byte("GET / HTTP/1.1\r\n\r\n"), status: -1, reset: true},
		"a frame without end":     {in: []byte{0, 0, 1, 0, 1, 2, 3}, status: -1, reset: true},
		"an oversized frame":      {in: oversized, status: -1, reset: true},
		"no protobuf":             {in: []byte{0, 0, 0, 2, 255, 255}, status: -1, reset: true},
		"no digest":               {in: frame(t, &Request{Project: p, Units: 1}), status: Status_STATUS_INVALID, reset: true},
		"sha1":                    {in: frame(t, &Request{Project: p, Digest: "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"}), status: Status_STATUS_INVALID, reset: true},
		"a path":                  {in: frame(t, &Request{Project: p, Digest: "sha256:../../../../etc/passwd"}), status: Status_STATUS_INVALID, reset: true},
		"half a project":          {in: frame(t, &Request{Project: p[:8], Digest: d, Units: 1}), status: Status_STATUS_INVALID, reset: true},
		"too many units":          {in: frame(t, &Request{Project: p, Digest: d, Units: maxRun + 1}), status: Status_STATUS_INVALID, reset: true},
		"units beyond the end":    {in: frame(t, &Request{Project: p, Digest: d, FirstUnit: 4, Units: 1}), status: Status_STATUS_OUT_OF_RANGE},
		"units far beyond":        {in: frame(t, &Request{Project: p, Digest: d, FirstUnit: 1<<32 - 1, Units: maxRun}), status: Status_STATUS_OUT_OF_RANGE},
		"a blob that is not here": {in: frame(t, &Request{Project: p, Digest: digest.FromString("x").String(), Units: 1}), status: Status_STATUS_NOT_FOUND},
	} {
		t.Run(name, func(t *testing.T) {
			st := &script{in: bytes.NewReader(c.in)}
			o.server().handle(t.Context(), identity.NodeID{}, st)
			if st.reset != c.reset {
				t.Errorf("reset %v", st.reset)
			}
			var a Answer
			err := peer.ReadMsg(&st.out, &a, maxMessage)
			if c.status < 0 {
				if !errors.Is(err, io.EOF) {
					t.Errorf("answered %v, %v", &a, err)
				}
				return
			}
			if err != nil || a.Status != c.status || !a.Last || st.out.Len() > 0 {
				t.Errorf("answered %v, %v and %d bytes", &a, err, st.out.Len())
			}
		})
	}
}

// A record whose signer is known no more is signed anew by who verified the
// blob; not by who has a handle of it from before, and gets it again.
func TestServer_SignsOnlyWhatItsStoreVerified(t *testing.T) {
	o, id := newOneBlob(t, 3*mib+1)
	for arriving, want := range map[bool]Status{false: Status_STATUS_OK, true: Status_STATUS_NO_LIST} {
		o.arriving = arriving
		srv := o.server()
		srv.known = func(identity.NodeID) bool { return false }
		srv.self, srv.signer = id.ID, id
		st := &script{in: bytes.NewReader(frame(t, &Request{Id: 1, Project: project[:], Digest: o.rec.Digest.String(), WantRecord: true}))}
		srv.handle(t.Context(), identity.NodeID{}, st)
		var a Answer
		if err := peer.ReadMsg(&st.out, &a, maxMessage); err != nil || a.Status != want || len(a.Record) > 0 != (want == Status_STATUS_OK) {
			t.Errorf("arriving %v: answered %v, %v", arriving, &a, err)
		}
	}
}

func TestServer_PipelinedRequests(t *testing.T) {
	o, _ := newOneBlob(t, 3*mib+1)
	d := o.rec.Digest
	ss := &session{stall: time.Second}
	var requests script
	requests.in = bytes.NewReader(nil)
	ss.st = &requests
	for _, r := range []struct {
		record   bool
		first, n int
	}{{true, 0, 0}, {false, 3, 8}, {true, 0, 2}, {false, 2, 1}} {
		if err := ss.ask(d, project, order{record: r.record, first: r.first, n: r.n}); err != nil {
			t.Fatal(err)
		}
	}
	server := &script{in: bytes.NewReader(requests.out.Bytes())}
	o.server().handle(t.Context(), identity.NodeID{}, server)
	ss.st = &script{in: bytes.NewReader(server.out.Bytes())}
	var order []int
	lists := 0
	buf := make([]byte, mib)
	var known *layout
	for ss.requests() > 0 {
		got, err := ss.receive(known, buf)
		if err != nil {
			t.Fatal(err)
		}
		if known == nil {
			l := layoutOf(got.size)
			known = &l
		}
		if got.list != nil {
			lists++
		}
		if got.unit >= 0 {
			order = append(order, got.unit)
			off := got.unit * mib
			if !bytes.Equal(got.data, o.data[off:off+len(got.data)]) {
				t.Fatalf("unit %d is other bytes", got.unit)
			}
		}
	}
	if want := []int{3, 0, 1, 2}; lists != 2 || len(order) != 4 || order[0] != want[0] || order[1] != want[1] || order[2] != want[2] || order[3] != want[3] {
		t.Fatalf("%d lists, units %v", lists, order)
	}
}

func TestSession_AnswersThatAreRefused(t *testing.T) {
	list := units.ListBytes(digest.SHA256, 3*mib)
	for name, c := range map[string][]byte{
		"garbage":                  []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"nothing":                  nil,
		"an oversized frame":       binary.BigEndian.AppendUint32(nil, 1<<30),
		"to another request":       frame(t, &Answer{Id: 9, Size: 3 * mib}),
		"a size below zero":        frame(t, &Answer{Id: 1, Size: -1}),
		"an endless list":          frame(t, &Answer{Id: 1, Size: 3 * mib, ListBytes: 1<<32 - 1}),
		"a list too short":         frame(t, &Answer{Id: 1, Size: 3 * mib, ListBytes: uint32(list - 1)}),
		"states of sha512":         append(frame(t, &Answer{Id: 1, Size: 3 * mib, ListBytes: uint32(units.ListBytes(digest.SHA512, 3*mib))}), make([]byte, 1<<10)...),
		"a list cut off":           frame(t, &Answer{Id: 1, Size: 3 * mib, ListBytes: uint32(list)}),
		"another unit":             frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, Unit: 2, UnitBytes: mib}),
		"an endless unit":          frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: 1<<32 - 1}),
		"a unit cut off":           append(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib}), 1, 2, 3),
		"bytes of no unit":         frame(t, &Answer{Id: 1, Size: 3 * mib, UnitBytes: 5}),
		"the end before the units": frame(t, &Answer{Id: 1, Size: 3 * mib, Last: true}),
		"a unit left out":          frame(t, &Answer{Id: 1, Size: 3 * mib, Taken: true}),
		"sub-states not wanted":    append(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib, SubBytes: 480}), make([]byte, mib+480)...),
		"sub-states of no unit":    append(frame(t, &Answer{Id: 1, Size: 3 * mib, SubBytes: 480}), make([]byte, 480)...),
		"a pause without end":      bytes.Repeat(frame(t, &Answer{Id: 1, Size: 3 * mib}), 1000),
	} {
		t.Run(name, func(t *testing.T) {
			ss := &session{stall: time.Second, st: &script{in: bytes.NewReader(c)}}
			ss.pending = []*run{{id: 1, end: 2, alg: digest.SHA256, record: true}}
			l := layoutOf(3 * mib)
			_, err := ss.receive(&l, make([]byte, mib))
			var refused *refusedError
			if err == nil || errors.As(err, &refused) || errors.Is(err, io.EOF) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestSession_SubStatesThatAreRefused(t *testing.T) {
	list := units.ListBytes(digest.SHA256, 3*mib)
	for name, c := range map[string][]byte{
		"too few":         append(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib, SubBytes: 479}), make([]byte, mib+480)...),
		"too many":        append(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib, SubBytes: 512}), make([]byte, mib+512)...),
		"without end":     append(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib, SubBytes: 1<<32 - 1}), make([]byte, mib)...),
		"cut off":         append(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib, SubBytes: 480}), make([]byte, 99)...),
		"of a list":       append(frame(t, &Answer{Id: 1, Size: 3 * mib, ListBytes: uint32(list), SubBytes: 480}), make([]byte, list+480)...),
		"of what is left": append(frame(t, &Answer{Id: 1, Size: 3 * mib, Taken: true, SubBytes: 480}), make([]byte, 480)...),
		"of the second unit": slices.Concat(frame(t, &Answer{Id: 1, Size: 3 * mib, HasUnit: true, UnitBytes: mib}), make([]byte, mib),
			frame(t, &Answer{Id: 1, HasUnit: true, Unit: 1, UnitBytes: mib, SubBytes: 480, Last: true}), make([]byte, mib+480)),
	} {
		t.Run(name, func(t *testing.T) {
			ss := &session{stall: time.Second, st: &script{in: bytes.NewReader(c)}}
			ss.pending = []*run{{id: 1, end: 2, alg: digest.SHA256, record: true, sparing: true, subs: true}}
			l := layoutOf(3 * mib)
			var err error
			for range 2 {
				if _, err = ss.receive(&l, make([]byte, mib)); err != nil {
					break
				}
			}
			if !errors.Is(err, errProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func FuzzServer(f *testing.F) {
	o, _ := newOneBlob(f, 2*mib+77)
	f.Add(frame(f, &Request{Id: 1, Digest: o.rec.Digest.String(), Project: project[:], WantRecord: true, Units: 2}))
	f.Add(append(frame(f, &Request{Id: 1, Digest: o.rec.Digest.String(), Project: project[:], FirstUnit: 2, Units: 8}), 0, 0, 0, 9))
	f.Add([]byte{255, 255, 255, 255})
	f.Add(frame(f, &Request{Id: 1, Digest: o.rec.Digest.String(), Project: project[:], WantRecord: true, WantSubStates: true, FirstUnit: 1, Units: 2}))
	little := content(100)
	here, absent := digest.FromBytes(little), digest.FromString("x")
	waits := func(id uint64, d digest.Digest, ms uint32) []byte {
		return frame(f, &Request{Id: id, Digest: d.String(), Project: project[:], Units: 1, WaitMs: ms, AnyOrder: true})
	}
	f.Add(slices.Concat(waits(1, absent, 1<<31), waits(2, here, 1), waits(3, absent, 1), waits(3, o.rec.Digest, 7)))
	f.Fuzz(func(t *testing.T, in []byte) {
		st := &script{in: bytes.NewReader(in)}
		srv := o.server()
		srv.split = newSplitter(srv).of
		// One small blob is here, none else is, and what is waited for is so for a moment.
		srv.landings = &landings{}
		srv.soon = func(digest.Digest, identity.ProjectID) ([]byte, bringing) { return nil, toNobody }
		srv.small = func(_ identity.NodeID, d digest.Digest, _ identity.ProjectID) ([]byte, bool) {
			return little, d == here
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		srv.handle(ctx, identity.NodeID{}, st)
		if n := srv.landings.places.Load(); n != 0 || len(srv.landings.m) != 0 {
			t.Fatalf("%d places are taken, %d blobs watched", n, len(srv.landings.m))
		}
	})
}

// FuzzSession gives arbitrary answers to honest questions: never a panic, and
// never a unit of a length that the blob does not have.
func FuzzSession(f *testing.F) {
	o, _ := newOneBlob(f, 2*mib+77)
	ask := frame(f, &Request{Id: 1, Digest: o.rec.Digest.String(), Project: project[:], WantRecord: true, FirstUnit: 2, Units: 1})
	st := &script{in: bytes.NewReader(ask)}
	o.server().handle(context.Background(), identity.NodeID{}, st)
	f.Add(st.out.Bytes(), true)
	f.Add(frame(f, &Answer{Id: 1, Status: Status_STATUS_UNREADABLE, Last: true}), false)
	srv := o.server()
	srv.split = newSplitter(srv).of
	st = &script{in: bytes.NewReader(append(ask, frame(f, &Request{Id: 2, Digest: o.rec.Digest.String(), Project: project[:], WantSubStates: true, Units: 2})...))}
	srv.handle(context.Background(), identity.NodeID{}, st)
	f.Add(st.out.Bytes(), false)
	buf := make([]byte, mib)
	f.Fuzz(func(t *testing.T, in []byte, known bool) {
		ss := &session{stall: time.Second, st: &script{in: bytes.NewReader(in)}}
		ss.pending = []*run{{id: 1, next: 2, end: 3, alg: digest.SHA256, record: true}, {id: 2, next: 0, end: 2, alg: digest.SHA256, subs: true}}
		// What is told of is within the unit.
		ss.splits = func(unit int, subs, data []byte) func(int) {
			if len(subs) != units.SubStatesBytes(digest.SHA256, int64(len(data))) || unit != 0 {
				t.Fatalf("%d bytes of sub-states for unit %d of %d", len(subs), unit, len(data))
			}
			at := 0
			return func(n int) {
				if n <= at || n > len(data) {
					t.Fatalf("%d bytes of %d after %d", n, len(data), at)
				}
				at = n
			}
		}
		var l *layout
		if known {
			k := layoutOf(o.rec.Size)
			l = &k
		}
		for {
			got, err := ss.receive(l, buf)
			var refused *refusedError
			if err != nil && !errors.As(err, &refused) {
				return
			}
			if got.unit >= 0 && l != nil {
				if _, n := l.span(got.unit); int64(len(got.data)) != n {
					t.Fatalf("unit %d of %d bytes", got.unit, len(got.data))
				}
			}
			if got.first && l == nil {
				k := layoutOf(got.size)
				l = &k
			}
		}
	})
}

// filled takes all places for blobs that nobody waits for.
func filled(s *Swarm) (overs []func()) {
	for range maxActive {
		overs = append(overs, s.enterTurn())
	}
	return overs
}

func TestSwarm_TurnsGoByAge(t *testing.T) {
	l := newLab(t)
	s := l.start().swarm
	overs := filled(s)
	var flights []*flight
	order := make(chan int, 4)
	for i := range 4 {
		f := newFlight(s, Want{Digest: digest.FromString(itoa(i)), Class: catalog.Placed})
		flights = append(flights, f)
		go func() {
			if s.turn(f) == nil {
				order <- i
			}
		}()
		eventually(t, "it waits", func() bool { return s.turns.Waiting() == i+1 })
	}
	for want := range 3 {
		overs[want]()
		if got := <-order; got != want {
			t.Fatalf("turn of %d, want %d", got, want)
		}
	}
	// A client that comes to wait ends the waiting.
	s.mu.Lock()
	flights[3].joined(Want{}, true)
	s.mu.Unlock()
	if got := <-order; got != 3 {
		t.Fatalf("turn of %d, want 3", got)
	}
	for _, over := range overs[3:] {
		over()
	}
	for _, f := range flights {
		s.over(f)
	}
	if s.active() != 0 || s.turns.Taken() != 0 {
		t.Fatalf("%d turns out, %d places taken", s.active(), s.turns.Taken())
	}
	for _, f := range flights {
		f.cancel()
	}
}

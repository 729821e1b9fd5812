package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/portolan/portolan/consensus/command"
)

// rows is everything in a view but its index and the answers it remembers.
func rows(t *testing.T, v *View) string {
	t.Helper()
	var b strings.Builder
	for r := range v.records {
		if r.GetRequest() == nil {
			b.WriteString(r.String() + "\n")
		}
	}
	return b.String()
}

func TestSnapshot_RoundTrip(t *testing.T) {
	m := built(t)
	var b, again bytes.Buffer
	if err := m.View().Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	s := New()
	if err := s.Restore(bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := s.View().Snapshot(&again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatal("a restored state is another one")
	}
	// And it goes on the same way, request ids and ids included.
	r := &machine{State: s, t: t, index: m.index, now: m.now}
	env, err := command.New("user:admin", t0, &command.UserCreate{Name: "bob", PasswordHash: "x"})
	if err != nil {
		t.Fatal(err)
	}
	env.RequestId = binary.BigEndian.AppendUint64(make([]byte, 8), 5) // seen before
	a, aerr := m.Apply(1000, env)
	c, cerr := r.Apply(1000, env)
	if a != c || aerr != nil || cerr != nil {
		t.Fatalf("%+v %v, %+v %v", a, aerr, c, cerr)
	}
	m.index, r.index = 1000, 1000
	if m.must(&command.UserCreate{Name: "eve", PasswordHash: "x"}) != 0 && r.must(&command.UserCreate{Name: "eve", PasswordHash: "x"}) == 0 {
		t.Fatal("no id")
	}
	if rows(t, m.View()) != rows(t, r.View()) {
		t.Fatal("the two went apart")
	}
}

func TestRestore_AllOrNothing(t *testing.T) {
	m := built(t)
	var b bytes.Buffer
	if err := m.View().Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	for n := range b.Len() {
		s := New()
		before := s.View()
		if err := s.Restore(bytes.NewReader(b.Bytes()[:n])); err == nil {
			t.Fatalf("a snapshot cut after %d of %d bytes was taken", n, b.Len())
		}
		if s.View() != before {
			t.Fatalf("a snapshot cut after %d bytes left something", n)
		}
	}
	if err := m.Restore(bytes.NewReader(b.Bytes())); err != nil { // not later: nothing changes
		t.Fatal(err)
	}
	for _, h := range []*command.SnapshotHeader{{Format: snapshotFormat + 1, Level: 1, Index: 1}, {Format: 1, Level: command.Level + 1, Index: 1}} {
		var newer bytes.Buffer
		if _, err := protodelim.MarshalTo(&newer, h); err != nil {
			t.Fatal(err)
		}
		var u *UnsupportedError
		if err := New().Restore(&newer); !errors.As(err, &u) || !strings.Contains(err.Error(), "start a newer version") {
			t.Fatal(err)
		}
	}
}

// FuzzRestore damages one row of a snapshot: what is read back can be written
// again, and nothing crashes. Rows are small, so that the fuzzer's shrinking of
// each find, which may take it a minute, takes it no time.
func FuzzRestore(f *testing.F) {
	var snapshot bytes.Buffer
	if err := built(&testing.T{}).View().Snapshot(&snapshot); err != nil {
		f.Fatal(err)
	}
	header, rows := split(f, snapshot.Bytes())
	for i, row := range rows {
		f.Add(uint8(i), row)
	}
	f.Fuzz(func(t *testing.T, at uint8, row []byte) {
		if len(row) > 1<<10 {
			return
		}
		var b bytes.Buffer
		frame(&b, header)
		for i, r := range rows {
			if i == int(at)%len(rows) {
				r = row
			}
			frame(&b, r)
		}
		s := New()
		before := s.View()
		if err := s.Restore(bytes.NewReader(b.Bytes())); err != nil {
			if s.View() != before {
				t.Fatal("half a snapshot was taken")
			}
			return
		}
		var again bytes.Buffer
		if err := s.View().Snapshot(&again); err != nil {
			t.Fatal(err)
		}
		if err := New().Restore(&again); err != nil {
			t.Fatalf("a snapshot of what was read cannot be read: %v", err)
		}
	})
}

// split takes a snapshot apart: messages, each after its length.
func split(f *testing.F, b []byte) (header []byte, rows [][]byte) {
	f.Helper()
	for len(b) > 0 {
		n, width := protowire.ConsumeVarint(b)
		if width < 0 || uint64(len(b)-width) < n {
			f.Fatal("the snapshot is not what the fuzzer takes it for")
		}
		rows = append(rows, b[width:width+int(n)])
		b = b[width+int(n):]
	}
	return rows[0], rows[1:]
}

func frame(b *bytes.Buffer, msg []byte) {
	b.Write(protowire.AppendVarint(nil, uint64(len(msg))))
	b.Write(msg)
}

package state

import (
	"bytes"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
)

// TestView_TreesAreAllListed: one that is not would be copied for each row of a
// snapshot.
func TestView_TreesAreAllListed(t *testing.T) {
	v := newView()
	var have []uintptr
	for _, tree := range v.trees() {
		have = append(have, reflect.ValueOf(tree).Pointer())
	}
	var look func(s reflect.Value)
	look = func(s reflect.Value) {
		for i := range s.NumField() {
			f := s.Field(i)
			_, tree := reflect.Zero(f.Type()).Interface().(building)
			switch {
			case tree && !slices.Contains(have, f.Pointer()):
				t.Errorf("trees does not list %s", s.Type().Field(i).Name)
			case s.Type().Field(i).Anonymous && f.Kind() == reflect.Struct:
				look(f)
			}
		}
	}
	look(reflect.ValueOf(v).Elem())
	if len(have) < 19 {
		t.Errorf("%d trees", len(have))
	}
}

// large is the mesh of the targets: 10,000 users, 5,000 projects, 50,000 grants.
func large(b *testing.B) *State {
	b.Helper()
	s := New()
	index := uint64(0)
	do := func(body proto.Message) int64 {
		index++
		env, err := command.New("user:admin", t0, body)
		if err != nil {
			b.Fatal(err)
		}
		res, err := s.Apply(index, env)
		if err != nil {
			b.Fatal(err)
		}
		return res.ID
	}
	do(meshCreate())
	const users, projects, grants = 10_000, 5_000, 50_000
	ids := make([]int64, users)
	for i := range users {
		name := fmt.Sprintf("user-%05d", i)
		ids[i] = do(&command.UserCreate{Name: name, Email: name + "@example.org", RealName: name, PasswordHash: fmt.Sprintf("$argon2id$v=19$m=19456,t=2,p=1$%022d$%043d", i, i)})
	}
	in := make([]int64, projects)
	for i := range projects {
		pid := [16]byte{1, byte(i), byte(i >> 8)}
		in[i] = do(&command.ProjectCreate{ProjectId: pid[:], Name: fmt.Sprintf("project-%05d", i), OwnerId: ids[i]})
	}
	for i := range grants - projects {
		do(&command.MemberSet{ProjectId: in[i%projects], UserId: ids[(i%projects+1+i/projects)%users], Role: int32(Developer)})
	}
	return s
}

// heap is what is in use after a collection.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkState_Large: what the state of the targets holds in memory, what an
// edit makes for the collector, and how long it takes to read a snapshot of it.
func BenchmarkState_Large(b *testing.B) {
	before := heap()
	s := large(b)
	held := heap() - before
	var snap bytes.Buffer
	if err := s.View().Snapshot(&snap); err != nil {
		b.Fatal(err)
	}
	b.Run("edit", func(b *testing.B) {
		b.ReportAllocs()
		index := s.View().Index()
		for b.Loop() {
			index++
			env, err := command.New("user:admin", t0, &command.UserUpdate{Id: 2, Email: new("x")})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Apply(index, env); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(held)/(1<<20), "MiB-held")
	})
	b.Run("restore", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := New().Restore(bytes.NewReader(snap.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}

package state

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
)

// TestBatch_IsSeenAtPublish: nobody sees part of a batch, and at its end the state
// is what the same commands make one by one.
func TestBatch_IsSeenAtPublish(t *testing.T) {
	one, m := built(t), built(t)
	var envs []*command.Envelope
	for i := range 3 * maxRequests / 2 { // answers are forgotten on the way
		env, err := command.New("user:admin", time.Unix(int64(i), 0), &command.UserDelete{Id: int64(1000 + i)})
		if err != nil {
			t.Fatal(err)
		}
		envs = append(envs, env)
	}
	from := m.View().Index()
	before, changed := m.View(), m.Changed()
	b := m.Batch()
	for i, env := range envs {
		index := from + uint64(i) + 1
		_, wantErr := one.Apply(index, env)
		if _, err := b.Apply(index, env); fmt.Sprint(err) != fmt.Sprint(wantErr) || b.Index() != index {
			t.Fatalf("%v, want %v; at %d, want %d", err, wantErr, b.Index(), index)
		}
		if m.View() != before {
			t.Fatal("part of a batch is seen")
		}
	}
	select {
	case <-changed:
		t.Fatal("a change was told before it was there")
	default:
	}
	b.Publish()
	select {
	case <-changed:
	default:
		t.Fatal("a change was not told")
	}
	var got, want bytes.Buffer
	if err := errors.Join(m.View().Snapshot(&got), one.View().Snapshot(&want)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Fatal("a batch made another state than its commands")
	}
	// An old view still has its own answers.
	if n := len(before.requests); n > 0 && before.requests[n-1].index > before.index {
		t.Errorf("a view at %d has an answer of %d", before.index, before.requests[n-1].index)
	}
}

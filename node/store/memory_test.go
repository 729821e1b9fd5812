package store

import (
	"context"
	"errors"
	"testing"
)

// TestMemory: what is checked gives way to what has to be checked; what is being
// checked does not.
func TestMemory(t *testing.T) {
	m := newMemory(10)
	take := func(n int64) *heldUnit {
		t.Helper()
		h, err := m.take(t.Context(), 0, n)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a, b := take(4), take(4)
	copy(a.bytes, "abcd")
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := m.take(ctx, 0, 4); !errors.Is(err, context.Canceled) {
		t.Fatalf("there was room for a third: %v", err)
	}
	waited := make(chan *heldUnit)
	go func() {
		h, _ := m.take(context.Background(), 0, 4)
		waited <- h
	}()
	m.hold(a)
	c := <-waited
	if c == nil || a.bytes != nil {
		t.Fatal("the one that was checked did not give way")
	}
	p := make([]byte, 4)
	if _, ok := m.copy(p, a, 0); ok {
		t.Fatal("it is read from after it gave way")
	}
	m.hold(b)
	if n, ok := m.copy(p, b, 2); !ok || n != 2 {
		t.Fatal("the other is not there")
	}
	m.free(a)
	m.free(b)
	m.free(b)
	m.drop(c)
	if m.used != 0 || m.idle.Len() != 0 {
		t.Fatalf("%d bytes are in use", m.used)
	}
	// One that is larger than all there is goes alone.
	m.drop(take(11))
}

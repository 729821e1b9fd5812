package identity

import (
	"bytes"
	"testing"
)

func TestBox_OnlyItsNodeAndPurposeOpensIt(t *testing.T) {
	a, b := newForTest(t), newForTest(t)
	key, sig := a.BoxKey()
	if err := VerifyBoxKey(a.ID, key[:], sig); err != nil {
		t.Fatal(err)
	}
	box, err := SealBox(key, []byte("for a"), []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.OpenBox([]byte("for a"), box); err != nil || !bytes.Equal(got, []byte("value")) {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := b.OpenBox([]byte("for a"), box); err == nil {
		t.Error("another node opens the box")
	}
	if _, err := a.OpenBox([]byte("for b"), box); err == nil {
		t.Error("the box opens for another purpose")
	}
	for i := range box {
		bad := bytes.Clone(box)
		bad[i] ^= 1
		if _, err := a.OpenBox([]byte("for a"), bad); err == nil {
			t.Errorf("the box opens with byte %d changed", i)
		}
		if _, err := a.OpenBox([]byte("for a"), box[:i]); err == nil {
			t.Errorf("the box opens when cut to %d bytes", i)
		}
	}
	if again, err := SealBox(key, []byte("for a"), []byte("value")); err != nil || bytes.Equal(again, box) {
		t.Errorf("two boxes of one value are the same (%v)", err)
	}
}

func newForTest(t *testing.T) *Identity {
	t.Helper()
	id, _, err := LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

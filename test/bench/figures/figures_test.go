package figures

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNew_JudgesByTheTarget(t *testing.T) {
	for _, c := range []struct {
		value  float64
		target *Target
		missed bool
	}{
		{5, nil, false}, {5, AtMost(5), false}, {5.1, AtMost(5), true}, {5, AtLeast(5), false}, {4.9, AtLeast(5), true}, {0, Never(), false}, {1, Never(), true},
	} {
		if r := New("x", c.value, "s", c.target, ""); r.Missed() != c.missed || r.Value != c.value {
			t.Errorf("%g with %+v: %+v", c.value, c.target, r)
		}
	}
	if r := New("x", 1234.56, "s", nil, ""); r.Value != 1235 {
		t.Errorf("%g keeps noise", r.Value)
	}
}

func TestSave_ReplacesRowsOfTheSameName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "rows.json")
	a, b, newA := New("a", 1, "ms", AtMost(2), ""), New("b", 3, "1/s", AtLeast(2), "note <"), New("a", 9, "ms", AtMost(2), "")
	for _, rows := range [][]Row{{a, b}, {newA}} {
		if err := Save(path, rows); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Row{newA, b}, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseBusy(t *testing.T) {
	busy, err := parseBusy("cpu  100 200 300 9999 9999 10 20 30 7 7\ncpu0 1 1 1 1\n")
	if err != nil || busy != 6.6 {
		t.Errorf("busy for %g s, %v", busy, err)
	}
	if _, err := parseBusy("intr 1 2 3"); err == nil {
		t.Error("another line was taken for the first")
	}
}

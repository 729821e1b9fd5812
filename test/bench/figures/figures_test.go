package figures

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestSave_AVoidRowReplacesNoneThatCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rows.json")
	counts, void, again := New("a", 1, "ms", AtMost(2), ""), New("b", 3, "1/s", AtLeast(2), "").Voided(), New("b", 4, "1/s", AtLeast(2), "").Voided()
	for _, rows := range [][]Row{{counts, void}, {New("a", 9, "ms", AtMost(2), "").Voided(), again}} {
		if err := Save(path, rows); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Row{counts, again}, got); diff != "" {
		t.Error(diff)
	}
}

func TestTable_MarksTooFewRounds(t *testing.T) {
	few, all, none := New("few", 1, "s", AtMost(2), ""), New("all", 1, "s", AtMost(2), ""), New("none", 1, "s", nil, "")
	void := New("void", 9, "s", AtMost(2), "why")
	few.Rounds, few.Asked = 1, 3
	all.Rounds, all.Asked = 3, 3
	void.Rounds, void.Asked = 3, 3
	var b strings.Builder
	if err := Table(&b, []Row{few, all, none, void.Voided()}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{"case measured unit target met others", "few 1 s <= 2 yes (1 of 3 rounds)", "all 1 s <= 2 yes", "none 1 s", "void 9 s <= 2 void (0 of 3 rounds) why"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMisses_NamesEachOnALine(t *testing.T) {
	few := New("few", 3, "s", AtMost(2), "")
	few.Rounds, few.Asked = 1, 3
	var b strings.Builder
	if err := Misses(&b, []Row{New("met", 1, "s", AtMost(2), ""), few, New("for information", 9, "s", nil, ""), New("void", 9, "s", AtMost(2), "").Voided(), New("a ratio", 0.5, "", AtLeast(0.8), "")}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("missed: few: 3 s, target <= 2 (1 of 3 rounds)\nmissed: a ratio: 0.5, target >= 0.8\n", b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestMachine_UseByOthers(t *testing.T) {
	from := Machine{begin: time.Now(), all: 100, mine: 20}
	for ours, want := range map[float64]Use{
		0:   {Busy: 0.75, Others: 0.5}, // of 20 s on two cores: 15 s, of which 5 s were the caller's
		6:   {Busy: 0.75, Others: 0.2},
		100: {Busy: 0.75}, // counted at another moment
	} {
		if got := from.until(Machine{begin: from.begin.Add(10 * time.Second), all: 115, mine: 25}, ours, 2); got != want {
			t.Errorf("with %g s of its own processes: %+v, not %+v", ours, got, want)
		}
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

package units

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

// subSizes draws lengths of a last unit around the borders of sub-units.
func subSizes() *rapid.Generator[int] {
	return rapid.Custom(func(t *rapid.T) int {
		n := rapid.IntRange(0, 4).Draw(t, "full sub-units")*int(SubUnit) +
			rapid.SampledFrom([]int{-128, -1, 0, 1, 63, 64, 65, 127, 128, 129, 4096}).Draw(t, "more")
		return max(1, n)
	})
}

// split is a blob of two units and the sub-states of one of them.
type split struct {
	l    *List
	blob []byte
	i    int
	data []byte // of unit i
	subs []byte
	n    int // bytes of a state
}

func drawSplit(t *rapid.T) split {
	alg := algorithms().Draw(t, "algorithm")
	b := content(rapid.Uint64().Draw(t, "seed"), int(Unit)+subSizes().Draw(t, "length of the last unit"))
	s := split{l: listOf(t, alg, b), blob: b, n: StateSize(alg)}
	return s.at(t, rapid.IntRange(0, 1).Draw(t, "unit"))
}

// at is unit i of the same blob.
func (s split) at(t require, i int) split {
	s.i, s.data = i, s.l.unit(s.blob, i)
	s.subs = subStates(t, s.l, i, s.data)
	return s
}

func subStates(t require, l *List, i int, data []byte) []byte {
	subs, err := l.SubStates(i, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if want := SubStatesBytes(l.Digest.Algorithm(), int64(len(data))); len(subs) != want {
		t.Fatalf("%d bytes of sub-states, want %d", len(subs), want)
	}
	return subs
}

// feed gives data to a checker in pieces of drawn lengths, and says what became of
// it.
func feed(t *rapid.T, c *Checker, data []byte) (err error) {
	for len(data) > 0 {
		n := rapid.SampledFrom([]int{1, 100, int(SubUnit) - 1, int(SubUnit), int(SubUnit) + 1, 1 << 20, 1 << 24}).Draw(t, "piece")
		n = min(n, len(data))
		if n < 1000 && len(data) > 4096 {
			n = min(len(data), n+4096) // not a million pieces
		}
		err = c.Take(data[:n])
		data = data[n:]
	}
	return err
}

func TestChecker_TrueBytesAreAlwaysAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSplit(t)
		c, err := s.l.Checker(s.i, s.subs)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(s.data); {
			if c.Done() {
				t.Fatalf("done after %d of %d bytes", at, len(s.data))
			}
			n := min(rapid.IntRange(1, 3*int(SubUnit)).Draw(t, "piece"), len(s.data)-at)
			if err := c.Take(s.data[at : at+n]); err != nil {
				t.Fatal(err)
			}
			at += n
			want := int64(at) / SubUnit * SubUnit
			if at == len(s.data) {
				want = int64(at)
			}
			if c.Checked() != want {
				t.Fatalf("%d bytes checked of %d, want %d", c.Checked(), at, want)
			}
		}
		if !c.Done() {
			t.Fatal("not done")
		}
	})
}

// Whatever is sent in place of a unit never completes it, with its true sub-states
// and with those that a liar makes from the wrong bytes.
func TestChecker_WrongBytesNeverCompleteAUnit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSplit(t)
		var bad []byte
		kinds := []string{"flip", "cut", "grow", "repeat", "foreign sub-unit", "foreign", "other unit"}
		if int64(len(s.data)) >= 2*SubUnit {
			kinds = append(kinds, "swap")
		}
		switch rapid.SampledFrom(kinds).Draw(t, "kind") {
		case "flip":
			bad = bytes.Clone(s.data)
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "swap":
			bad = bytes.Clone(s.data)
			at := rapid.IntRange(0, len(bad)/int(SubUnit)-2).Draw(t, "sub-unit") * int(SubUnit)
			copy(bad[at:], s.data[at+int(SubUnit):at+2*int(SubUnit)])
			copy(bad[at+int(SubUnit):], s.data[at:at+int(SubUnit)])
		case "cut":
			bad = s.data[:rapid.IntRange(0, len(s.data)-1).Draw(t, "length")]
		case "grow":
			bad = append(bytes.Clone(s.data), rapid.SampledFrom([][]byte{{0}, {0x80}, make([]byte, 128), s.data}).Draw(t, "tail")...)
		case "repeat": // a sub-unit twice, all behind it later
			at := rapid.IntRange(0, (len(s.data)-1)/int(SubUnit)).Draw(t, "sub-unit") * int(SubUnit)
			end := min(len(s.data), at+int(SubUnit))
			bad = append(bytes.Clone(s.data[:end]), s.data[at:]...)
		case "foreign sub-unit":
			bad = bytes.Clone(s.data)
			at := rapid.IntRange(0, (len(s.data)-1)/int(SubUnit)).Draw(t, "sub-unit") * int(SubUnit)
			copy(bad[at:min(len(bad), at+int(SubUnit))], content(1<<17, int(SubUnit)))
		case "foreign":
			bad = content(1<<16, len(s.data))
		case "other unit":
			bad = make([]byte, len(s.data))
		}
		if bytes.Equal(bad, s.data) {
			bad = bytes.Clone(bad) // by chance
			bad[0] ^= 1
		}
		// With the true sub-states: what is checked is right.
		c, err := s.l.Checker(s.i, s.subs)
		if err != nil {
			t.Fatal(err)
		}
		err = feed(t, c, bad)
		if c.Done() {
			t.Fatal("wrong bytes are a unit")
		}
		if len(bad) >= len(s.data) && !errors.Is(err, ErrBadUnit) {
			t.Fatalf("after all of it: %v", err)
		}
		if n := c.Checked(); !bytes.Equal(bad[:n], s.data[:n]) {
			t.Fatalf("%d bytes were checked that are not the unit's", n)
		}
		if len(bad) != len(s.data) {
			return
		}
		// With those of the liar: all but the last sub-unit fits, and the unit does not.
		c, err = s.l.Checker(s.i, forge(t, s.l, s.i, bad))
		if err != nil {
			t.Fatal(err)
		}
		if err := feed(t, c, bad); !errors.Is(err, ErrBadUnit) || c.Done() {
			t.Fatalf("a liar's unit with a liar's sub-states: %v", err)
		}
		if want := (int64(len(bad)) - 1) / SubUnit * SubUnit; c.Checked() != want {
			t.Fatalf("%d bytes fit the liar's sub-states, want %d", c.Checked(), want)
		}
		// Who compares the liar's sub-states with the right bytes finds him out, where
		// his bytes were wrong.
		c, _ = s.l.Checker(s.i, forge(t, s.l, s.i, bad))
		err = feed(t, c, s.data)
		first := int64(0)
		for bad[first] == s.data[first] {
			first++
		}
		if want := first / SubUnit * SubUnit; want < (int64(len(bad))-1)/SubUnit*SubUnit && (!errors.Is(err, ErrBadSubUnit) || c.Checked() != want || !c.Done()) {
			t.Fatalf("right bytes against a liar's sub-states: %v, %d checked, want %d", err, c.Checked(), want)
		}
	})
}

// forge makes the sub-states of bytes that are not the unit's.
func forge(t require, l *List, i int, bad []byte) []byte {
	h, err := l.before(i)
	if err != nil {
		t.Fatal(err)
	}
	var subs []byte
	for ; int64(len(bad)) > SubUnit; bad = bad[SubUnit:] {
		_, _ = h.Write(bad[:SubUnit])
		s, err := h.state()
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, s...)
	}
	return subs
}

// False sub-states hold nothing up: the unit is right all the same, and it shows
// that they were not.
func TestChecker_FalseSubStatesCostNoUnit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSplit(t)
		if len(s.subs) == 0 {
			s = s.at(t, 0) // the last unit has one sub-unit, the first has sixteen
		}
		count := len(s.subs) / s.n
		bad := bytes.Clone(s.subs)
		k := rapid.IntRange(0, count-1).Draw(t, "sub-state")
		kinds := []string{"flip", "of another unit"}
		if k > 0 {
			kinds = append(kinds, "repeat")
		}
		switch rapid.SampledFrom(kinds).Draw(t, "kind") {
		case "flip":
			bad[k*s.n+rapid.IntRange(0, s.n-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "repeat":
			copy(bad[k*s.n:(k+1)*s.n], s.subs[(k-1)*s.n:k*s.n])
		case "of another unit":
			copy(bad[k*s.n:(k+1)*s.n], content(1<<18, s.n))
		}
		c, err := s.l.Checker(s.i, bad)
		if err != nil {
			t.Fatal(err)
		}
		if err := feed(t, c, s.data); !errors.Is(err, ErrBadSubUnit) || errors.Is(err, ErrBadUnit) || !c.Done() {
			t.Fatalf("right bytes, false sub-state %d: %v", k, err)
		}
		if c.Checked() != int64(k)*SubUnit {
			t.Fatalf("%d bytes fit, want those before sub-state %d", c.Checked(), k)
		}
	})
}

func TestChecker_OtherNumbersOfSubStates(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		b := content(5, int(Unit)+3*int(SubUnit))
		l := listOf(t, alg, b)
		n := StateSize(alg)
		for i, want := range []int{15, 2} {
			subs := subStates(t, l, i, l.unit(b, i))
			if len(subs) != want*n {
				t.Fatalf("unit %d has %d bytes of sub-states", i, len(subs))
			}
			for _, bad := range [][]byte{nil, subs[:len(subs)-1], subs[:len(subs)-n], append(bytes.Clone(subs), subs[:n]...)} {
				if _, err := l.Checker(i, bad); !errors.Is(err, ErrBadSubUnit) {
					t.Fatalf("%d bytes of sub-states: %v", len(bad), err)
				}
			}
		}
		for _, i := range []int{-1, 2, 1 << 40} {
			if _, err := l.Checker(i, nil); !errors.Is(err, ErrBadUnit) {
				t.Fatalf("unit %d: %v", i, err)
			}
			if _, err := l.SubStates(i, bytes.NewReader(b)); !errors.Is(err, ErrBadUnit) {
				t.Fatalf("unit %d: %v", i, err)
			}
		}
		for length, want := range map[int64]int{0: 0, 1: 0, SubUnit: 0, SubUnit + 1: 1, Unit: 15, largeUnit: 63, hugeUnit: 127} {
			if got := SubStatesBytes(alg, length); got != want*n {
				t.Errorf("%d bytes of sub-states for %d bytes", got, length)
			}
		}
	})
}

// Who has wrong bytes has no sub-states for them, and who has too few neither.
func TestSubStates_OfWhatIsNotTheUnit(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		b := content(6, int(Unit)+int(SubUnit)+1)
		l := listOf(t, alg, b)
		for i := range 2 {
			bad := bytes.Clone(l.unit(b, i))
			bad[len(bad)-1] ^= 1
			if _, err := l.SubStates(i, bytes.NewReader(bad)); !errors.Is(err, ErrBadUnit) {
				t.Fatalf("unit %d: %v", i, err)
			}
			if _, err := l.SubStates(i, bytes.NewReader(bad[:len(bad)-1])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("unit %d cut: %v", i, err)
			}
		}
	})
}

// An empty blob's one unit is checked like any other.
func TestChecker_OfAnEmptyBlob(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		for _, d := range []digest.Digest{alg.FromString(""), alg.FromString("x")} {
			l := &List{Digest: d, UnitSize: Unit}
			c, err := l.Checker(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.Done() != (d == alg.FromString("")) {
				t.Fatalf("done: %v", c.Done())
			}
			if err := c.Take([]byte{0}); !errors.Is(err, ErrBadUnit) {
				t.Fatal(err)
			}
		}
	})
}

func TestChecker_PlainDigestMode(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		l := listOf(t, alg, content(8, int(Unit)+1))
		plain(t, alg)
		if _, err := l.Checker(0, make([]byte, 15*StateSize(alg))); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if _, err := l.SubStates(0, bytes.NewReader(content(8, int(Unit)))); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	})
}

// FuzzChecker gives a checker arbitrary changes of a unit and of its sub-states, in
// pieces of any length: only the unit itself completes it, and what is checked with
// true sub-states is right.
func FuzzChecker(f *testing.F) {
	type blob struct {
		l          *List
		data, subs []byte
	}
	var blobs []blob
	for _, alg := range Algorithms() {
		b := content(9, int(Unit)+2*int(SubUnit)+5)
		l := listOf(f, alg, b)
		data := l.unit(b, 1)
		blobs = append(blobs, blob{l, data, subStates(f, l, 1, data)})
	}
	f.Add(false, uint32(0), uint32(0), []byte(nil), []byte(nil), uint32(7))
	f.Add(true, uint32(1<<16), uint32(32), []byte{1}, []byte{1}, uint32(1<<16))
	f.Add(true, uint32(2<<16), uint32(0), make([]byte, 300), []byte{0}, uint32(1))
	f.Fuzz(func(t *testing.T, second bool, at, subAt uint32, change, subChange []byte, piece uint32) {
		b := blobs[0]
		if second {
			b = blobs[1]
		}
		// A change is xored in at a place, which may be beyond the end.
		data, subs := bytes.Clone(b.data), bytes.Clone(b.subs)
		if over := int(at)%len(data) + len(change) - len(data); over > 0 {
			data = append(data, make([]byte, over)...)
		}
		for i, x := range change {
			data[int(at)%len(b.data)+i] ^= x
		}
		for i, x := range subChange {
			subs[(int(subAt)+i)%len(subs)] ^= x
		}
		c, err := b.l.Checker(1, subs)
		if err != nil {
			t.Fatal(err)
		}
		n := 1 + int(piece)%len(data)
		if n < 256 {
			n += 256 // not a hundred thousand pieces
		}
		for rest := data; len(rest) > 0; rest = rest[min(n, len(rest)):] {
			err = c.Take(rest[:min(n, len(rest))])
		}
		same := bytes.Equal(data, b.data)
		if c.Done() != same {
			t.Fatalf("done: %v, the same bytes: %v", c.Done(), same)
		}
		truly := bytes.Equal(subs, b.subs)
		if good := c.Checked(); truly && !bytes.Equal(data[:good], b.data[:good]) {
			t.Fatal("other bytes fit the true sub-states")
		}
		if (err == nil) != (same && truly) {
			t.Fatalf("the same bytes: %v, true sub-states: %v, and %v", same, truly, err)
		}
	})
}

// BenchmarkChecker is what a unit costs that is checked while it comes.
func BenchmarkChecker(b *testing.B) {
	buf := content(1, int(Unit)*2)
	for _, alg := range Algorithms() {
		l := listOf(b, alg, buf)
		subs := subStates(b, l, 0, buf[:Unit])
		b.Run(alg.String(), func(b *testing.B) {
			b.SetBytes(Unit)
			b.ReportAllocs()
			for b.Loop() {
				c, err := l.Checker(0, subs)
				if err == nil {
					err = c.Take(buf[:Unit])
				}
				if err != nil || !c.Done() {
					b.Fatal(err)
				}
			}
		})
	}
}

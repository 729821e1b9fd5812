package units

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/portolan/portolan/node/identity"
)

// testSigner is a node key without a file.
type testSigner struct {
	id  identity.NodeID
	key ed25519.PrivateKey
}

func newSigner(seed byte) testSigner {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	return testSigner{id: identity.NodeID(key.Public().(ed25519.PublicKey)), key: key}
}

func (s testSigner) Sign(msg []byte) []byte { return ed25519.Sign(s.key, msg) }

func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

func listOf(t require, b []byte) *List {
	h := NewHasher()
	_, _ = h.Write(b)
	l, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func recordOf(t require, l *List) Record {
	s := newSigner(1)
	rec, err := Sign(l, s.id, s)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// require is what testing.T and rapid.T have in common here.
type require interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// sizes draws blob sizes around unit borders: that is where mistakes are.
func sizes() *rapid.Generator[int] {
	return rapid.Custom(func(t *rapid.T) int {
		n := rapid.IntRange(0, 3).Draw(t, "full units")*int(Unit) +
			rapid.SampledFrom([]int{-65, -64, -1, 0, 1, 55, 56, 63, 64, 65, 4096}).Draw(t, "more")
		return max(0, n)
	})
}

func (l *List) unit(b []byte, i int) []byte {
	off, n := l.Span(i)
	return b[off : off+n]
}

func TestSelfTest(t *testing.T) {
	if err := Available(); err != nil {
		t.Fatal(err)
	}
}

func TestHasher_GivesThePlainDigest_AndTrueUnitsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := content(rapid.Uint64().Draw(t, "seed"), sizes().Draw(t, "size"))
		h := NewHasher()
		for rest := b; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 700_000).Draw(t, "piece"))
			_, _ = h.Write(rest[:n])
			rest = rest[n:]
		}
		l, err := h.List()
		if err != nil {
			t.Fatal(err)
		}
		if want := digest.FromBytes(b); l.Digest != want || h.Digest() != want || l.Size != int64(len(b)) {
			t.Fatalf("list of %s, %d bytes; want %s, %d", l.Digest, l.Size, want, len(b))
		}
		order := rapid.Permutation(indexes(l.Units())).Draw(t, "order")
		for _, i := range order {
			if err := l.Verify(i, l.unit(b, i)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestHasher_ResumesAtEveryBorder(t *testing.T) {
	b := content(7, int(3*Unit)+100)
	want := listOf(t, b)
	for n := range 4 {
		h := NewHasher()
		_, _ = h.Write(b[:int64(n)*Unit+50]) // the states do not know of the 50
		r, err := ResumeHasher(h.States())
		if err != nil {
			t.Fatal(err)
		}
		if r.Size() != int64(n)*Unit {
			t.Fatalf("resumed at %d", r.Size())
		}
		_, _ = r.Write(b[r.Size():])
		got, err := r.List()
		if err != nil {
			t.Fatal(err)
		}
		if got.Root() != want.Root() || got.Digest != want.Digest {
			t.Fatalf("resumed at unit %d: another list", n)
		}
	}
}

func TestVerify_RefusesEverythingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := max(1, sizes().Draw(t, "size"))
		b := content(rapid.Uint64().Draw(t, "seed"), size)
		l := listOf(t, b)
		i := rapid.IntRange(0, l.Units()-1).Draw(t, "unit")
		good := l.unit(b, i)
		var bad []byte
		at := i
		switch kind := rapid.SampledFrom([]string{"flip", "cut", "grow", "other place", "foreign", "repeat", "index"}).Draw(t, "kind"); kind {
		case "flip":
			bad = bytes.Clone(good)
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "cut":
			bad = good[:rapid.IntRange(0, len(good)-1).Draw(t, "length")]
		case "grow":
			// Also by the hash's own padding: the length comes from the record.
			bad = append(bytes.Clone(good), rapid.SampledFrom([][]byte{{0}, {0x80}, make([]byte, 64)}).Draw(t, "tail")...)
		case "other place":
			at = rapid.IntRange(0, l.Units()-1).Draw(t, "place")
			if at == i {
				t.Skip("same place")
			}
			bad = good
		case "foreign":
			bad = content(1<<16, len(good))
		case "repeat":
			bad = append(bytes.Clone(good), good...)
		case "index":
			bad, at = good, rapid.SampledFrom([]int{-1, l.Units(), 1 << 40}).Draw(t, "index")
		}
		if at == i && bytes.Equal(bad, good) {
			t.Skip("foreign bytes that are the same by chance: units can be one byte long")
		}
		if err := l.Verify(at, bad); !errors.Is(err, ErrBadUnit) {
			t.Fatalf("unit %d: %v", at, err)
		}
	})
}

func TestParseList_TrueListsPass_FalseOnesAreRefusedByTheRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := content(rapid.Uint64().Draw(t, "seed"), sizes().Draw(t, "size"))
		l := listOf(t, b)
		rec := recordOf(t, l)
		raw, err := l.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) != ListBytes(l.Size) {
			t.Fatalf("%d bytes, ListBytes says %d", len(raw), ListBytes(l.Size))
		}
		back, err := ParseList(rec, raw)
		if err != nil || back.Root() != l.Root() {
			t.Fatalf("true list: %v", err)
		}

		var bad []byte
		switch rapid.SampledFrom([]string{"flip", "cut", "grow", "swap", "empty"}).Draw(t, "kind") {
		case "flip":
			bad = bytes.Clone(raw)
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "cut":
			bad = raw[:rapid.IntRange(0, len(raw)-1).Draw(t, "length")]
		case "grow":
			bad = append(bytes.Clone(raw), make([]byte, rapid.SampledFrom([]int{1, StateSize}).Draw(t, "by"))...)
		case "swap":
			if l.Units() < 3 {
				t.Skip("one state")
			}
			bad = bytes.Clone(raw)
			copy(bad[1:], raw[1+StateSize:1+2*StateSize])
			copy(bad[1+StateSize:], raw[1:1+StateSize])
		}
		if _, err := ParseList(rec, bad); !errors.Is(err, ErrBadList) {
			t.Fatalf("false list: %v", err)
		}
	})
}

// A list from wrong bytes holds link by link until its last one: exactly the
// attack that the signed record is for, and the last link is the second net.
func TestFalseListOfWrongBytes(t *testing.T) {
	good, evil := content(1, int(2*Unit)+9), content(2, int(2*Unit)+9)
	l, e := listOf(t, good), listOf(t, evil)
	forged := &List{Digest: l.Digest, Size: l.Size, UnitSize: l.UnitSize, states: e.states}
	for i := range 2 {
		if err := forged.Verify(i, forged.unit(evil, i)); err != nil {
			t.Fatalf("unit %d of the forged list: %v", i, err)
		}
	}
	if err := forged.Verify(2, forged.unit(evil, 2)); !errors.Is(err, ErrBadUnit) {
		t.Fatalf("last unit: %v", err)
	}
	if err := recordOf(t, l).Matches(forged); !errors.Is(err, ErrBadList) {
		t.Fatalf("record: %v", err)
	}
}

func TestRecord_RoundTrip_AndEveryChangeIsRefused(t *testing.T) {
	l := listOf(t, content(3, int(Unit)+1))
	rec := recordOf(t, l)
	raw, err := rec.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseRecord(raw)
	if err != nil || back != rec {
		t.Fatalf("round trip: %v", err)
	}
	if err := back.Verify(); err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			bad := bytes.Clone(raw)
			bad[i] ^= 1 << bit
			r, err := ParseRecord(bad)
			if err == nil {
				err = r.Verify()
			}
			if !errors.Is(err, ErrBadRecord) {
				t.Fatalf("byte %d, bit %d flipped: %v", i, bit, err)
			}
		}
	}
	for _, bad := range [][]byte{nil, raw[:len(raw)-1], append(bytes.Clone(raw), 0)} {
		if _, err := ParseRecord(bad); !errors.Is(err, ErrBadRecord) {
			t.Fatalf("%d bytes: %v", len(bad), err)
		}
	}
	other := newSigner(2)
	stolen := rec
	stolen.Signer = other.id
	if err := stolen.Verify(); !errors.Is(err, ErrBadRecord) {
		t.Fatalf("another signer's name: %v", err)
	}
}

func TestRecord_MustBeCanonical(t *testing.T) {
	s := newSigner(1)
	l := listOf(t, content(3, 100))
	for name, change := range map[string]func(*List){
		"unit size chosen by the signer": func(l *List) { l.UnitSize = 64 },
		"too large":                      func(l *List) { l.Size = MaxSize + 1; l.UnitSize = UnitSizeFor(l.Size) },
		"negative":                       func(l *List) { l.Size = -1 },
		"sha512":                         func(l *List) { l.Digest = digest.SHA512.FromString("x") },
		"no digest":                      func(l *List) { l.Digest = "" },
		"path for a digest":              func(l *List) { l.Digest = "sha256:../../../../../../../../../../../../../../../../etc/passwd/xxxxxxx" },
	} {
		c := *l
		change(&c)
		if _, err := Sign(&c, s.id, s); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Lists are thinned by size alone. The chain of a blob of zeros is computed
// without keeping it.
func TestList_IsThinnedAboveTwoAndEightGiB(t *testing.T) {
	for _, tc := range []struct {
		size, unit int64
		units      int
	}{
		{0, Unit, 1}, {1, Unit, 1}, {Unit, Unit, 1}, {Unit + 1, Unit, 2},
		{2 << 30, Unit, 2048}, {2<<30 + 1, 4 * Unit, 513}, {8 << 30, 4 * Unit, 2048},
		{8<<30 + 1, 8 * Unit, 1025}, {MaxSize, 8 * Unit, 1 << 17},
	} {
		l := &List{Size: tc.size, UnitSize: UnitSizeFor(tc.size)}
		if l.UnitSize != tc.unit || l.Units() != tc.units {
			t.Errorf("%d bytes: %d units of %d, want %d of %d", tc.size, l.Units(), l.UnitSize, tc.units, tc.unit)
		}
		off, n := l.Span(l.Units() - 1)
		if off+n != tc.size {
			t.Errorf("%d bytes: last unit ends at %d", tc.size, off+n)
		}
		if tc.unit%SubUnit != 0 || tc.unit%sha256.BlockSize != 0 {
			t.Errorf("unit of %d bytes is no multiple of sub-unit and block", tc.unit)
		}
	}
}

func TestList_Thinned_Verifies(t *testing.T) {
	if testing.Short() {
		t.Skip("hashes 2 GiB")
	}
	h := NewHasher()
	zeros := make([]byte, Unit)
	for range 2049 {
		_, _ = h.Write(zeros)
	}
	_, _ = h.Write([]byte("end"))
	l, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 4*Unit)
	for _, i := range []int{0, 1, 511} {
		if err := l.Verify(i, big); err != nil {
			t.Fatal(err)
		}
	}
	last := append(make([]byte, Unit), "end"...)
	if err := l.Verify(512, last); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseRecord(f *testing.F) {
	l := listOf(f, content(3, 100))
	raw, _ := recordOf(f, l).MarshalBinary()
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		back, err := r.MarshalBinary()
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("two forms of one record: %v", err)
		}
		_ = r.Verify()
	})
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte{formStates}, int64(10))
	f.Add(make([]byte, 1+StateSize), Unit+1)
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		rec := Record{Digest: digest.FromString("x"), Size: size, UnitSize: UnitSizeFor(size)}
		if _, err := ParseList(rec, b); err == nil {
			t.Fatal("accepted a list that nothing names")
		}
	})
}

func BenchmarkHasher(b *testing.B) {
	buf := content(1, 16<<20)
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			sha256.Sum256(buf)
		}
	})
	b.Run("with list", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			h := NewHasher()
			_, _ = h.Write(buf)
			h.Digest()
		}
	})
}

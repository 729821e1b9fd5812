package units

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"math/rand/v2"
	"strings"
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

func listOf(t require, alg digest.Algorithm, b []byte) *List {
	h := NewHasher(alg)
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
			rapid.SampledFrom([]int{-129, -128, -65, -64, -1, 0, 1, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 4096}).Draw(t, "more")
		return max(0, n)
	})
}

// algorithms draws what a property must hold for.
func algorithms() *rapid.Generator[digest.Algorithm] { return rapid.SampledFrom(Algorithms()) }

// each runs a test for every algorithm.
func each(t *testing.T, f func(t *testing.T, alg digest.Algorithm)) {
	t.Helper()
	for _, alg := range Algorithms() {
		t.Run(alg.String(), func(t *testing.T) { f(t, alg) })
	}
}

func (l *List) unit(b []byte, i int) []byte {
	off, n := l.Span(i)
	return b[off : off+n]
}

func TestSelfTest(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		if err := Available(alg); err != nil {
			t.Fatal(err)
		}
		// A build whose hash is another one, or in another form, is found out.
		for name, change := range map[string]func(*algorithm){
			"another magic":       func(a *algorithm) { a.magic = "sha\x06" },
			"another first state": func(a *algorithm) { a.initial = make([]byte, a.size) },
			"another function":    func(a *algorithm) { a.vectors = []vector{{'b', a.vectors[1].after}} },
			"longer states":       func(a *algorithm) { a.size += 8 },
			"no states":           func(a *algorithm) { a.new = opaqueNew },
		} {
			a := *algorithmOf(alg)
			change(&a)
			if err := a.selfTest(); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	if err := Available(digest.SHA384); !errors.Is(err, ErrUnsupportedDigest) {
		t.Errorf("sha384: %v", err)
	}
}

// opaqueNew is a hash with no chain that could be read.
func opaqueNew() hash.Hash { return struct{ hash.Hash }{sha256.New()} }

// plain gives the process a hash with no chain that could be read for alg, as
// another toolchain may, until the test ends. Nothing else may hash meanwhile.
func plain(t *testing.T, alg digest.Algorithm) {
	t.Helper()
	if err := Available(alg); err != nil { // the self test is for the real one
		t.Fatal(err)
	}
	h, real := crypto.SHA256, sha256.New
	if alg == digest.SHA512 {
		h, real = crypto.SHA512, sha512.New
	}
	crypto.RegisterHash(h, func() hash.Hash { return struct{ hash.Hash }{real()} })
	t.Cleanup(func() { crypto.RegisterHash(h, real) })
}

// In plain-digest mode of one algorithm the digest is right and there is no
// list; the other algorithm goes on with lists.
func TestPlainDigestMode_OfOneAlgorithm(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		b := content(5, int(Unit)+77)
		list := listOf(t, alg, b)
		plain(t, alg)
		// Neither good nor bad units are judged.
		for _, unit := range [][]byte{b[Unit:], make([]byte, 77)} {
			if err := list.Verify(1, unit); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBadUnit) {
				t.Fatalf("%s: %v", alg, err)
			}
		}
		for _, other := range Algorithms() {
			h := NewHasher(other)
			_, _ = h.Write(b)
			if h.Digest() != other.FromBytes(b) {
				t.Fatalf("%s: wrong digest", other)
			}
			l, err := h.List()
			if other == alg {
				if !errors.Is(err, ErrUnavailable) || len(h.States()) != 0 {
					t.Fatalf("%s: %v, %d bytes of states", other, err, len(h.States()))
				}
			} else if err != nil || l.Verify(1, b[Unit:]) != nil {
				t.Fatalf("%s: %v", other, err)
			}
		}
		if _, err := ResumeHasher(alg, make([]byte, StateSize(alg))); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("resume: %v", err)
		}
	})
}

func TestCheckDigest(t *testing.T) {
	for _, alg := range Algorithms() {
		good := alg.FromString("x")
		if err := CheckDigest(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
		hexed := good.Encoded()
		for _, bad := range []string{
			hexed[1:], hexed + "0", hexed + "00", strings.ToUpper(hexed), "g" + hexed[1:], " " + hexed, hexed + "\n", "",
			strings.Repeat("../", len(hexed)/3) + strings.Repeat("x", len(hexed)%3),
		} {
			if err := CheckDigest(digest.Digest(alg.String() + ":" + bad)); !errors.Is(err, ErrUnsupportedDigest) {
				t.Errorf("%s:%q: %v", alg, bad, err)
			}
		}
	}
	for _, bad := range []digest.Digest{
		"", ":", "sha256", "sha512:" + digest.Digest(digest.SHA256.FromString("x").Encoded()), "sha256:" + digest.Digest(digest.SHA512.FromString("x").Encoded()),
		digest.SHA384.FromString("x"), "md5:d41d8cd98f00b204e9800998ecf8427e", "SHA256:" + digest.Digest(digest.FromString("x").Encoded()),
	} {
		if err := CheckDigest(bad); !errors.Is(err, ErrUnsupportedDigest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestHasher_GivesThePlainDigest_AndTrueUnitsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		alg := algorithms().Draw(t, "algorithm")
		b := content(rapid.Uint64().Draw(t, "seed"), sizes().Draw(t, "size"))
		h := NewHasher(alg)
		for rest := b; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 700_000).Draw(t, "piece"))
			_, _ = h.Write(rest[:n])
			rest = rest[n:]
		}
		l, err := h.List()
		if err != nil {
			t.Fatal(err)
		}
		if want := alg.FromBytes(b); l.Digest != want || h.Digest() != want || l.Size != int64(len(b)) {
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
	each(t, func(t *testing.T, alg digest.Algorithm) {
		b := content(7, int(3*Unit)+100)
		want := listOf(t, alg, b)
		for n := range 4 {
			h := NewHasher(alg)
			_, _ = h.Write(b[:int64(n)*Unit+50]) // the states do not know of the 50
			if len(h.States()) != n*StateSize(alg) {
				t.Fatalf("%d bytes of states after %d units", len(h.States()), n)
			}
			r, err := ResumeHasher(alg, h.States())
			if err != nil {
				t.Fatal(err)
			}
			if r.Size() != int64(n)*Unit || r.Algorithm() != alg {
				t.Fatalf("resumed at %d with %s", r.Size(), r.Algorithm())
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
		for _, bad := range []int{1, StateSize(alg) - 1, StateSize(alg) + 1} {
			if _, err := ResumeHasher(alg, make([]byte, bad)); err == nil {
				t.Fatalf("resumed with %d bytes of states", bad)
			}
		}
	})
	if _, err := ResumeHasher(digest.SHA384, nil); !errors.Is(err, ErrUnsupportedDigest) {
		t.Fatal(err)
	}
}

func TestVerify_RefusesEverythingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := max(1, sizes().Draw(t, "size"))
		b := content(rapid.Uint64().Draw(t, "seed"), size)
		l := listOf(t, algorithms().Draw(t, "algorithm"), b)
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
			bad = append(bytes.Clone(good), rapid.SampledFrom([][]byte{{0}, {0x80}, make([]byte, 64), make([]byte, 128)}).Draw(t, "tail")...)
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
		alg := algorithms().Draw(t, "algorithm")
		n := StateSize(alg)
		l := listOf(t, alg, b)
		rec := recordOf(t, l)
		raw, err := l.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) != ListBytes(alg, l.Size) {
			t.Fatalf("%d bytes, ListBytes says %d", len(raw), ListBytes(alg, l.Size))
		}
		back, err := ParseList(rec, raw)
		if err != nil || back.Root() != l.Root() {
			t.Fatalf("true list: %v", err)
		}

		var bad []byte
		switch rapid.SampledFrom([]string{"flip", "cut", "grow", "swap", "empty", "other algorithm"}).Draw(t, "kind") {
		case "flip":
			bad = bytes.Clone(raw)
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "cut":
			bad = raw[:rapid.IntRange(0, len(raw)-1).Draw(t, "length")]
		case "grow":
			bad = append(bytes.Clone(raw), make([]byte, rapid.SampledFrom([]int{1, n}).Draw(t, "by"))...)
		case "swap":
			if l.Units() < 3 {
				t.Skip("one state")
			}
			bad = bytes.Clone(raw)
			copy(bad[1:], raw[1+n:1+2*n])
			copy(bad[1+n:], raw[1:1+n])
		case "other algorithm":
			for _, other := range Algorithms() {
				if other != alg {
					bad, _ = listOf(t, other, b).MarshalBinary()
				}
			}
			if l.Units() == 1 {
				t.Skip("no states")
			}
		}
		if _, err := ParseList(rec, bad); !errors.Is(err, ErrBadList) {
			t.Fatalf("false list: %v", err)
		}
	})
}

// A list from wrong bytes holds link by link until its last one: exactly the
// attack that the signed record is for, and the last link is the second net.
func TestFalseListOfWrongBytes(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		good, evil := content(1, int(2*Unit)+9), content(2, int(2*Unit)+9)
		l, e := listOf(t, alg, good), listOf(t, alg, evil)
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
	})
}

func TestRecord_RoundTrip_AndEveryChangeIsRefused(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		l := listOf(t, alg, content(3, int(Unit)+1))
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
		otherAlg := bytes.Clone(raw)
		otherAlg[1] ^= 3 // 1 is 2 and 2 is 1
		for _, bad := range [][]byte{nil, {1}, raw[:2], raw[:len(raw)-1], append(bytes.Clone(raw), 0), otherAlg, append(otherAlg, make([]byte, 32)...), otherAlg[:len(raw)-32]} {
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
	})
}

func TestRecord_MustBeCanonical(t *testing.T) {
	s := newSigner(1)
	l := listOf(t, digest.SHA256, content(3, 100))
	for name, change := range map[string]func(*List){
		"unit size chosen by the signer": func(l *List) { l.UnitSize = 64 },
		"too large":                      func(l *List) { l.Size = MaxSize + 1; l.UnitSize = UnitSizeFor(l.Size) },
		"negative":                       func(l *List) { l.Size = -1 },
		"sha384":                         func(l *List) { l.Digest = digest.SHA384.FromString("x") },
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
		if tc.unit%SubUnit != 0 || tc.unit%sha256.BlockSize != 0 || tc.unit%sha512.BlockSize != 0 {
			t.Errorf("unit of %d bytes is no multiple of sub-unit and block", tc.unit)
		}
	}
}

func TestList_Thinned_Verifies(t *testing.T) {
	if testing.Short() {
		t.Skip("hashes 2 GiB")
	}
	each(t, func(t *testing.T, alg digest.Algorithm) {
		h := NewHasher(alg)
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
	})
}

func FuzzParseRecord(f *testing.F) {
	for _, alg := range Algorithms() {
		raw, _ := recordOf(f, listOf(f, alg, content(3, 100))).MarshalBinary()
		f.Add(raw)
	}
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
	for _, alg := range Algorithms() {
		f.Add(make([]byte, 1+StateSize(alg)), Unit+1)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		for _, alg := range Algorithms() {
			rec := Record{Digest: alg.FromString("x"), Size: size, UnitSize: UnitSizeFor(size)}
			if _, err := ParseList(rec, b); err == nil {
				t.Fatal("accepted a list that nothing names")
			}
		}
	})
}

func BenchmarkHasher(b *testing.B) {
	buf := content(1, 16<<20)
	for _, alg := range Algorithms() {
		b.Run(alg.String()+"/plain", func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				h := alg.Hash()
				_, _ = h.Write(buf)
				h.Sum(nil)
			}
		})
		b.Run(alg.String()+"/with list", func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				h := NewHasher(alg)
				_, _ = h.Write(buf)
				h.Digest()
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	buf := content(1, int(Unit)*2)
	for _, alg := range Algorithms() {
		l := listOf(b, alg, buf)
		b.Run(alg.String(), func(b *testing.B) {
			b.SetBytes(Unit)
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Verify(0, buf[:Unit]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

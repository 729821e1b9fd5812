package store

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// BenchmarkUpload is what hashing, staging and installing cost together, when
// the algorithm is known before the first byte and when it is named at the end.
func BenchmarkUpload(b *testing.B) {
	for _, alg := range units.Algorithms() {
		b.Run(alg.String(), func(b *testing.B) { benchmarkUpload(b, alg, false) })
		b.Run(alg.String()+" named at the end", func(b *testing.B) { benchmarkUpload(b, alg, true) })
	}
}

func benchmarkUpload(b *testing.B, alg digest.Algorithm, atTheEnd bool) {
	s := newStore(b)
	data := content(1, 32<<20)
	d := alg.FromBytes(data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		u, rest := upload(b, s), data
		if atTheEnd {
			if _, err := u.Append(b.Context(), bytes.NewReader(rest)); err != nil {
				b.Fatal(err)
			}
			rest = nil
		}
		if _, err := u.Finish(b.Context(), bytes.NewReader(rest), d, link); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Catalog().EndLease(b.Context(), d, link.PID, link.Repo); err != nil {
			b.Fatal(err)
		}
		if err := s.Collect(b.Context(), d); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

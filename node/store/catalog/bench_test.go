package catalog

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// BenchmarkPutManifest shows what gathering requests into one synced transaction
// is worth: time per request by the number of clients.
func BenchmarkPutManifest(b *testing.B) {
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			c := openAt(b, b.TempDir(), Options{})
			pid := identity.NewProjectID()
			var n atomic.Int64
			b.SetParallelism(max(clients/runtime.GOMAXPROCS(0), 1))
			if clients == 1 {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			}
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					name := fmt.Sprint(n.Add(1))
					if _, err := c.PutManifest(b.Context(), put(pid, "app", name, name)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkReads measures what clients wait for in a repository of 100,000 tags.
func BenchmarkReads(b *testing.B) {
	const tags, perPut = 100_000, 200
	c := openMemory(b, Options{})
	pid := identity.NewProjectID()
	var last Put
	for i := 0; i < tags; i += perPut {
		last = put(pid, "app", fmt.Sprint(i))
		for j := range perPut {
			last.Tags = append(last.Tags, tagName(i+j))
		}
		mustPut(b, c, last)
	}
	for name, fn := range map[string]func(i int) error{
		"Tags100FromTheStart": func(int) error { _, err := c.Tags(pid, "app", "", 100); return err },
		"Tags100FromBehind":   func(i int) error { _, err := c.Tags(pid, "app", tagName(i%tags), 100); return err },
		"Tag":                 func(i int) error { _, err := c.Tag(pid, "app", tagName(i%tags)); return err },
		"Repository":          func(int) error { _, err := c.Repository(pid, "app"); return err },
		"Repositories":        func(int) error { _, err := c.Repositories(pid, "", 100); return err },
		"Linked":              func(int) error { _, _, err := c.Linked(pid, "app", digest.FromString("base layer")); return err },
		"TagsOf":              func(int) error { _, err := c.TagsOf(pid, "app", last.Digest, 100); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := fn(i * 7919); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package blobs

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
)

// maxListBytes bounds the unit lists in memory that came from a bucket: a GET of
// a blob whose list is here is one request. 128 bytes a list and 32 a MiB of
// content: that is some 500 GiB.
const maxListBytes = 16 << 20

// listCache remembers the stored form of unit lists, those used last.
type listCache struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[digest.Digest, []byte]
	bytes int
}

func (c *listCache) get(d digest.Digest) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lru == nil {
		return nil
	}
	b, _ := c.lru.Get(d)
	return b
}

func (c *listCache) put(d digest.Digest, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) > maxListBytes/4 {
		return // one blob does not push out all others
	}
	if c.lru == nil {
		// Bounded by bytes, below; the number is what the smallest lists would come to.
		c.lru, _ = simplelru.NewLRU(maxListBytes/64, func(_ digest.Digest, old []byte) { c.bytes -= len(old) })
	}
	c.lru.Remove(d)
	c.lru.Add(d, b)
	for c.bytes += len(b); c.bytes > maxListBytes; {
		c.lru.RemoveOldest()
	}
}

func (c *listCache) forget(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lru != nil {
		c.lru.Remove(d)
	}
}

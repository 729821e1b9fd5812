package v2

import (
	"context"
	"runtime"
	"sync"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/portolan/portolan/node/store/manifest"
)

const (
	// largeManifest is what a manifest may have and cost nothing to speak of. Those
	// of images have some kilobytes.
	largeManifest = 256 << 10
	// largePerUser is how many manifests above that one user may send at once: each
	// is held in memory, for as long as a slow client takes.
	largePerUser = 8
)

// large bounds the memory that large manifests take: one of 4 MiB that is made for
// it costs 90 MiB while it is parsed.
type large struct {
	parsing chan struct{} // one for each processor

	mu sync.Mutex
	of map[string]int // sent now, by user
}

func newLarge() *large {
	return &large{parsing: make(chan struct{}, runtime.GOMAXPROCS(0)), of: make(map[string]int)}
}

// begin counts one that a user sends; end must follow if there is no error.
func (l *large) begin(user string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[user] >= largePerUser {
		e := refuse(errcode.ErrorCodeTooManyRequests, "you are sending %d manifests of more than %d bytes already: wait for one to end", largePerUser, largeManifest)
		e.retryAfter = unreachableRetry
		return e
	}
	l.of[user]++
	return nil
}

func (l *large) end(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[user]--; l.of[user] == 0 {
		delete(l.of, user)
	}
}

// parse is manifest.Parse, of as many large ones at once as there are processors.
func (l *large) parse(ctx context.Context, mediaType string, body []byte) (*manifest.Manifest, error) {
	if len(body) > largeManifest {
		select {
		case l.parsing <- struct{}{}:
			defer func() { <-l.parsing }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return manifest.Parse(mediaType, body)
}

package store

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// keyLocks is one mutex per digest in use: a file and its row change together
// while nobody else changes either.
type keyLocks struct {
	mu sync.Mutex
	m  map[digest.Digest]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int
}

// lock waits for d and gives the way to let go of it.
func (l *keyLocks) lock(d digest.Digest) (unlock func()) {
	l.mu.Lock()
	if l.m == nil {
		l.m = make(map[digest.Digest]*keyLock)
	}
	k := l.m[d]
	if k == nil {
		k = &keyLock{}
		l.m[d] = k
	}
	k.users++
	l.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.m, d)
		}
	}
}

package transfer

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxWaits bounds the pairs of an artifact and a manifest that it names and that is
// not known here, some 250 bytes each: two for each task of a full queue. One beyond
// is found by the artifact's own retries.
const maxWaits = 2 * maxTasks

// waiting knows which artifacts in the queue wait for which manifests (T9): both
// ways, so that an artifact that leaves the queue takes what it waited for along.
type waiting struct {
	mu sync.Mutex
	of map[key]map[key]bool // absent manifest -> artifacts that name it
	by map[key][]key        // artifact -> absent manifests
	n  int                  // pairs
}

func newWaiting() waiting { return waiting{of: map[key]map[key]bool{}, by: map[key][]key{}} }

// note has an artifact wait for these manifests of its repository and no others. It
// reports whether there was room for all.
func (w *waiting) note(root key, absent []digest.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(root)
	for _, d := range absent {
		if w.n >= maxWaits {
			return false
		}
		k := key{artifact, root.pid, root.repo, d}
		if w.of[k] == nil {
			w.of[k] = map[key]bool{}
		}
		if !w.of[k][root] {
			w.of[k][root] = true
			w.by[root] = append(w.by[root], k)
			w.n++
		}
	}
	return true
}

// drop is for an artifact that left the queue.
func (w *waiting) drop(root key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(root)
}

// forget is called with mu held.
func (w *waiting) forget(root key) {
	for _, k := range w.by[root] {
		delete(w.of[k], root)
		if len(w.of[k]) == 0 {
			delete(w.of, k)
		}
		w.n--
	}
	delete(w.by, root)
}

// isFor reports whether anything waits for a manifest.
func (w *waiting) isFor(manifest key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.of[manifest] != nil
}

// roots gives the artifacts that wait for a manifest. They go on waiting until they
// were looked at again.
func (w *waiting) roots(manifest key) []key {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]key, 0, len(w.of[manifest]))
	for k := range w.of[manifest] {
		out = append(out, k)
	}
	return out
}

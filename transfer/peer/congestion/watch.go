package congestion

import (
	"log/slog"
	"sync"
	"syscall"
	"time"
)

// maxWatched bounds the connections that are looked at.
const maxWatched = 4096

// Watcher looks at connections. Make it with [Watch].
type Watcher struct {
	log  *slog.Logger
	stop chan struct{}
	done chan struct{}
	once sync.Once

	mu    sync.Mutex
	conns map[*watched]struct{}
}

type watched struct {
	raw   syscall.RawConn
	judge judge
}

// Watch begins to look at what is added.
func Watch(log *slog.Logger) *Watcher {
	w := &Watcher{log: log, stop: make(chan struct{}), done: make(chan struct{}), conns: map[*watched]struct{}{}}
	go w.run()
	return w
}

// Add looks at a connection until it is closed. What is no TCP connection of the
// system is left alone.
func (w *Watcher) Add(conn any) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.conns) < maxWatched {
		w.conns[&watched{raw: raw}] = struct{}{}
	}
}

// Len is how many connections are looked at.
func (w *Watcher) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// Close ends it; connections keep what they have.
func (w *Watcher) Close() {
	w.once.Do(func() { close(w.stop) })
	<-w.done
}

func (w *Watcher) run() {
	defer close(w.done)
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-w.stop:
			return
		}
		w.mu.Lock()
		all := make([]*watched, 0, len(w.conns))
		for c := range w.conns {
			all = append(all, c)
		}
		w.mu.Unlock()
		for _, c := range w.lookAt(all, time.Now()) {
			w.mu.Lock()
			delete(w.conns, c)
			w.mu.Unlock()
		}
	}
}

// lookAt looks at connections and gives those that are closed, or are no TCP
// connections.
func (w *Watcher) lookAt(all []*watched, now time.Time) (gone []*watched) {
	have := make(map[*watched]counters, len(all))
	busy := 0
	for _, c := range all {
		x, err := read(c.raw)
		if err != nil {
			gone = append(gone, c)
			continue
		}
		have[c] = x
		if c.judge.busy(x) {
			busy++
		}
	}
	for c, x := range have {
		w.change(c, x, busy > 1, now)
	}
	return gone
}

func (w *Watcher) change(c *watched, have counters, shared bool, now time.Time) {
	to := c.judge.look(have, shared, now)
	if to == "" {
		return
	}
	if err := set(c.raw, to); err != nil {
		c.judge.refused(to)
		w.log.Debug("congestion control not changed", "from", have.algorithm, "to", to, "error", err)
		return
	}
	w.log.Debug("congestion control changed", "from", have.algorithm, "to", to, "rtt", have.rtt, "shortest", have.shortest)
}

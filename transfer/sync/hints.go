package sync

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
)

// HintKind marks this package's announcements in the gossip.
const HintKind byte = 1

const (
	// announceAfter gathers the writes of one push into one announcement, well
	// below what a person notices.
	announceAfter = 20 * time.Millisecond
	// passOnAfter is when a site repeats what it learned from another, for sites
	// that can't hear the first one. By then most have pulled it and the
	// announcement changes nothing.
	passOnAfter = time.Second
	// maxHint is the most bytes of an announcement: what gossip sends in one packet.
	// That is 22 heads or more.
	maxHint = 1200
	// hintOverhead is the most that the feed's mark takes, or a head beside its own
	// bytes.
	hintOverhead = 4
	// maxParked bounds the projects that were hinted at before the control state
	// knows them. Beyond it the poll finds them.
	maxParked = 4096
)

// hints gathers what is to be announced. The catalogue calls its methods.
type hints struct {
	mu      sync.Mutex
	written map[identity.ProjectID]bool // changed by a write made here
	learned map[identity.ProjectID]bool // changed
	feed    bool
	wake    chan struct{}
}

func (h *hints) init() {
	h.written = map[identity.ProjectID]bool{}
	h.learned = map[identity.ProjectID]bool{}
	h.wake = make(chan struct{}, 1)
}

func (h *hints) onLocalWrite(pid identity.ProjectID) {
	h.mu.Lock()
	h.written[pid] = true
	h.mu.Unlock()
	wake(h.wake)
}

func (h *hints) onCommit(pid identity.ProjectID) {
	h.mu.Lock()
	h.learned[pid] = true
	h.mu.Unlock()
	wake(h.wake)
}

func (h *hints) onFeed() {
	h.mu.Lock()
	h.feed = true
	h.mu.Unlock()
	wake(h.wake)
}

// take empties what a write here makes urgent. What was only learned stays.
func (h *hints) take() (written map[identity.ProjectID]bool, feed, learned bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	written, feed = h.written, h.feed
	h.written, h.feed = map[identity.ProjectID]bool{}, false
	for pid := range written {
		delete(h.learned, pid)
	}
	return written, feed, len(h.learned) > 0
}

func (h *hints) takeLearned() map[identity.ProjectID]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.learned
	h.learned = map[identity.ProjectID]bool{}
	return out
}

// announce tells all others what was written here, soon, and what was learned
// from others, later.
func (s *Sync) announce(ctx context.Context) {
	passOn := time.NewTimer(passOnAfter)
	passOn.Stop()
	defer passOn.Stop()
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-passOn.C:
			waiting = false
			s.announceHeads(s.hints.takeLearned(), false)
		case <-s.hints.wake:
			if !pause(ctx, announceAfter, nil) {
				return
			}
			written, feed, learned := s.hints.take()
			s.announceHeads(written, feed)
			if learned && !waiting {
				waiting = true
				passOn.Reset(passOnAfter)
			}
		}
	}
}

func (s *Sync) announceHeads(pids map[identity.ProjectID]bool, feed bool) {
	if s.cfg.Announcer == nil {
		return
	}
	heads := make([]*Head, 0, len(pids))
	for pid := range pids {
		vector, err := s.cat.Vector(pid)
		if err != nil {
			s.log.Warn("a project's vector can't be read: peers find its changes by polling", "pid", pid, "error", err)
			continue
		}
		h := &Head{ProjectId: pid[:], VectorHash: vectorHash(vector)}
		s.sayWritten(h, pid)
		heads = append(heads, h)
	}
	for _, note := range announcements(heads, feed) {
		if b, err := proto.Marshal(note); err == nil {
			s.cfg.Announcer.Announce(HintKind, b)
		}
	}
}

// announcements puts heads into as few as hold them.
func announcements(heads []*Head, feed bool) (out []*Announcement) {
	note, size := &Announcement{Feed: feed}, hintOverhead
	for _, h := range heads {
		n := proto.Size(h) + hintOverhead
		if size+n > maxHint {
			out = append(out, note)
			note, size = &Announcement{}, hintOverhead
		}
		note.Heads, size = append(note.Heads, h), size+n
	}
	if len(note.GetHeads()) > 0 || note.GetFeed() {
		out = append(out, note)
	}
	return out
}

// Hint takes an announcement of another node, from gossip. It may come from
// anyone in the mesh, late, twice or never.
func (s *Sync) Hint(from identity.NodeID, kind byte, payload []byte) {
	if kind != HintKind {
		return
	}
	note := new(Announcement)
	l := s.link(from)
	if l == nil || proto.Unmarshal(payload, note) != nil {
		return
	}
	s.metrics.hints.Inc()
	if note.GetFeed() {
		wake(l.feedDue)
	}
	view := s.cfg.State.View()
	for _, h := range note.GetHeads() {
		pid, err := identity.ProjectIDFromBytes(h.GetProjectId())
		if err != nil {
			return
		}
		if _, known := view.ProjectByPID(pid); !known {
			s.park(pid)
			continue
		}
		if s.takesFrom(pid, from) != nil {
			continue
		}
		s.hearWritten(from, pid, h)
		if !s.has(pid, h.GetVectorHash()) {
			l.request(pid)
		}
	}
}

// park remembers that a project is worth asking about once the control state
// knows it: catalogue entries of an unknown project are not pulled.
func (s *Sync) park(pid identity.ProjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.parked) < maxParked {
		s.parked[pid] = true
	}
}

// has reports whether the catalogue's vector is the one that a head speaks of.
func (s *Sync) has(pid identity.ProjectID, hash uint64) bool {
	v, err := s.cat.Vector(pid)
	return err == nil && vectorHash(v) == hash
}

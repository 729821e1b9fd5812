package sync

import (
	"context"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// auditEvery is how often each project's entries are counted without a sign of
// trouble. It reads the whole catalogue, some microseconds for each entry.
const auditEvery = 12 * time.Hour

// auditAgain is after how long that is done again if a project could not be put right,
// as on a full disk: half of it may have been done. It doubles while it fails, since
// each attempt has peers send the project again.
const auditAgain = time.Minute

// audit finds rows that were lost and left the sums as they were, which no
// comparison with a peer shows: at the start, and now and then.
func (s *Sync) audit(ctx context.Context) {
	again := auditAgain
	for {
		s.auditAll(ctx)
		s.mu.Lock()
		if len(s.halfForgot) == 0 {
			again = auditAgain
		}
		s.mu.Unlock()
		if !s.untilAudit(ctx, again) {
			return
		}
		again = min(2*again, auditEvery)
	}
}

// untilAudit waits until the next one, which comes sooner if a project could not be put
// right; false when ctx ended.
func (s *Sync) untilAudit(ctx context.Context, again time.Duration) bool {
	due, failed := time.After(jitter(auditEvery)), s.notForgot
	for {
		select {
		case <-failed: // during the last one, or since
			due, failed = time.After(jitter(again)), nil
		case <-due:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Sync) auditAll(ctx context.Context) {
	pids, err := s.cat.Projects()
	if err != nil {
		s.log.Error("the catalogue's projects can't be listed", "error", err)
		return
	}
	for _, pid := range pids {
		if ctx.Err() != nil {
			return
		}
		stored, counted, err := s.cat.Recount(ctx, pid)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("a project could not be recounted", "pid", pid, "error", err)
			}
			continue
		}
		s.mu.Lock()
		half := s.halfForgot[pid]
		s.mu.Unlock()
		if stored == counted && !half || !s.lostRows(ctx, pid, []any{"pid", pid, "entries", stored.Count, "counted", counted.Count}) {
			continue
		}
		for _, l := range s.allLinks() {
			l.request(pid) // refused by the pull itself where it may not be asked
		}
	}
}

// lostRows makes the catalogue forget what it has seen of a project, so that
// peers send what it lost. Once at a time is enough, whoever notices it.
func (s *Sync) lostRows(ctx context.Context, pid identity.ProjectID, attrs []any) bool {
	s.mu.Lock()
	already := s.forgetting[pid]
	s.forgetting[pid] = true
	if s.life != nil {
		ctx = s.life // the peer that showed it may go
	}
	s.mu.Unlock()
	if already {
		return false
	}
	s.log.Error("this catalogue lost rows of a project: pulling the project anew", attrs...)
	err := s.cat.DropVector(ctx, pid)
	s.mu.Lock()
	delete(s.forgetting, pid)
	if err != nil {
		s.halfForgot[pid] = true
	} else {
		delete(s.halfForgot, pid)
	}
	s.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("a project's vector could not be dropped: trying again later", "pid", pid, "error", err)
			wake(s.notForgot)
		}
		return false
	}
	for _, l := range s.allLinks() {
		l.mu.Lock()
		delete(l.seen, pid)
		l.mu.Unlock()
	}
	return true
}

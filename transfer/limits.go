package transfer

import (
	"sync"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/transfer/rules"
	"github.com/portolan/portolan/transfer/swarm"
)

// limits are the bandwidths of rules into this site: one for each rule that
// something came for, shared by all that comes for it.
type limits struct {
	mu   sync.Mutex
	rule map[int64]*swarm.Limit
}

// of gives a rule's, also if it has no limit now: it may get one while the blob
// is on its way.
func (ls *limits) of(t rules.Terms, s *state.State) *swarm.Limit {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.rule[t.RuleID]
	if l == nil {
		if ls.rule == nil {
			ls.rule = map[int64]*swarm.Limit{}
		}
		l = swarm.NewLimit(t.Bandwidth)
		// The terms may be older than what was followed last.
		if r, ok := s.View().RuleByID(t.RuleID); ok {
			l.Set(r.Bandwidth)
		}
		ls.rule[t.RuleID] = l
	}
	return l
}

// follow takes over changed bandwidths, for what is on its way as well. What
// still comes for a rule that is gone comes at its last one.
func (ls *limits) follow(s *state.State) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	v := s.View()
	for id, l := range ls.rule {
		if r, ok := v.RuleByID(id); ok {
			l.Set(r.Bandwidth)
		} else {
			delete(ls.rule, id)
		}
	}
}

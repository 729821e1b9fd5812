package sync

import "context"

// dropGone forgets what stores said they hold that no member serves any more:
// nobody would be asked for it, and their rows would stay for ever. It is done
// when a link has ended, so that nothing comes in after it, and at the start, for
// what was removed while this node was away.
//
// A node whose control state is an old one may drop a store that it does not know
// yet; its feed is read again from its beginning.
func (s *Sync) dropGone(ctx context.Context) {
	view := s.cfg.State.View()
	if _, member := view.Node(s.cfg.Self); !member {
		return // a removed node serves what it has, and knows of nobody anew
	}
	stores, err := s.cat.Stores()
	for _, id := range stores {
		if _, served := view.NodeOfStore(id); served {
			continue
		}
		if err = s.cat.DropStore(ctx, id); err != nil {
			break
		}
		s.log.Info("a store is no longer in the mesh: forgetting what it said that it holds", "store", id)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("what a removed store held is not forgotten yet: tried again at the next start", "err", err)
	}
}

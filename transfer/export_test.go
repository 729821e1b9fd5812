package transfer

import "context"

// SettleOnce is what settlePins does now and then.
func (r *Reconciler) SettleOnce(ctx context.Context) error { return r.settleOnce(ctx) }

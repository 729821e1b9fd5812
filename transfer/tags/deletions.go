package tags

import (
	"fmt"

	"github.com/portolan/portolan/consensus/command"
)

// beginDelete passes the gate that pushes pass, too: a deletion that is answered here
// and not exchanged yet would be lost with this site. end must be called after it.
func (d *Door) beginDelete() (end func(), err error) {
	if d.cfg.Deleting == nil {
		return func() {}, nil
	}
	end, wait := d.cfg.Deleting()
	if wait > 0 {
		return nil, &command.Unavailable{RetryAfter: wait, Reason: fmt.Sprintf("site %s is about to be removed and takes no deletions at the moment: delete at another site", d.cfg.Site)}
	}
	return end, nil
}

package tags

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// errAway marks the refusal of a write to a project that may not rest here.
var errAway = errors.New("the project may not rest here")

// awayError is errAway in words for who pushes.
type awayError struct{ refusal *command.Error }

func (e awayError) Error() string        { return e.refusal.Error() }
func (e awayError) Is(target error) bool { return target == errAway }
func (e awayError) Unwrap() error        { return e.refusal }

// atHome runs what writes to a project in the catalogue here, if the project may
// rest at this site. A site that leaves a project finds out who has all that is
// here, and then lets go of it: what was written after that would be lost. So the
// look at the state and the write are one to Settle.
func (d *Door) atHome(pid identity.ProjectID, write func() error) error {
	d.home.RLock()
	defer d.home.RUnlock()
	p, v, err := d.find(pid)
	if err != nil {
		return err
	}
	if !v.MayRest(p, d.cfg.Site) {
		return awayError{&command.Error{Code: command.CodeDenied,
			Message: fmt.Sprintf("project %s leaves site %s, which takes no pushes and deletes any more: use %s", p.Name, d.cfg.Site, strings.Join(p.Sites, ", "))}}
	}
	return write()
}

// Settle returns when no write is under way that began under a state older than
// the one of before the call.
func (d *Door) Settle() {
	d.home.Lock()
	d.home.Unlock() //nolint:staticcheck // SA2001: passing through is what it is for
}

// clockRetry is what clients are told while the clock here is wrong: people have
// to set it.
const clockRetry = 30 * time.Second

// clockRight refuses writes of tags while the clock here is far off the others'.
func (d *Door) clockRight() error {
	if d.cfg.ClockOff == nil {
		return nil
	}
	by, off := d.cfg.ClockOff()
	if !off {
		return nil
	}
	how := "behind"
	if by < 0 {
		how = "ahead of"
	}
	return &command.Unavailable{RetryAfter: clockRetry, Reason: fmt.Sprintf("the clock of site %s is %s %s those of the sites in reach, and it takes no tags until the clock is set (by NTP)",
		d.cfg.Site, by.Abs().Round(time.Second), how)}
}

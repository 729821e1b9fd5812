package transfer

import (
	"errors"
	"fmt"
	"time"

	syncer "github.com/portolan/portolan/transfer/sync"
)

// ErrNotAnnounced is returned for a question about a whole site whose removal the
// control state does not announce: it goes on taking pushes, and no answer would
// stay true.
var ErrNotAnnounced = errors.New("the removal of the site is not announced, or was called off: begin anew")

// SilentError says that the leaving site does not answer.
type SilentError struct {
	Site string
	Err  error
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("site %s does not answer, so nobody can say what only it holds: %v", e.Site, e.Err)
}

// Unwrap gives why.
func (e *SilentError) Unwrap() error { return e.Err }

// UnwillingError says that the leaving site answers, so that it is there, and does not
// say what it holds.
type UnwillingError struct {
	Site string
	Err  error
}

func (e *UnwillingError) Error() string {
	return fmt.Sprintf("site %s is there and does not say what it holds (%v): repeat this in a moment; if it stays so, its log says more", e.Site, e.Err)
}

// Unwrap gives why.
func (e *UnwillingError) Unwrap() error { return e.Err }

// UnheardError says that the leaving site answers, and that its control state has not
// come as far as the announcement of its removal.
type UnheardError struct{ Site string }

func (e *UnheardError) Error() string {
	return fmt.Sprintf("site %s is there and has not heard yet that its removal is announced, so it goes on taking pushes: repeat this in a moment; if it stays so, portolan status says whether it reaches the voting sites", e.Site)
}

// ClockError says that the leaving site answers, and that the announcement of its
// removal does not count by its clock.
type ClockError struct {
	Site string
	Off  time.Duration // its clock, minus that by which it was announced, about
}

func (e *ClockError) Error() string {
	way := "ahead of"
	if e.Off < 0 {
		way = "behind"
	}
	return fmt.Sprintf("the clock of site %s is about %s %s that by which its removal was announced, so it goes on taking pushes: set it right and repeat this", e.Site, e.Off.Abs().Round(time.Minute), way)
}

// PushingError says that pushes that began before are still under way at the
// leaving site, which takes no new ones, or that other sites have not yet fetched
// what it keeps for pushes that they answered.
type PushingError struct {
	Site     string
	UnderWay int
}

func (e *PushingError) Error() string {
	return fmt.Sprintf("%d pushes or deletions at site %s, or pushes elsewhere with blobs that only come from there, are not done yet: repeat this in a moment", e.UnderWay, e.Site)
}

// UnsharedError says that no other site has all yet that was written at the leaving
// one, which is asked itself.
type UnsharedError struct{ Site, Project string }

func (e *UnsharedError) Error() string {
	return fmt.Sprintf("no other site in reach has yet all that was pushed and deleted at site %s in project %s: repeat this in a moment; if it stays so, portolan status says which sites are away", e.Site, e.Project)
}

// noAnswer says what it means that a question to the leaving site failed.
func (l *leaving) noAnswer(err error) error {
	if syncer.IsRefusal(err) {
		return &UnwillingError{l.q.Site, err}
	}
	return &SilentError{l.q.Site, err}
}

package blobs

import (
	"errors"
	"math/rand/v2"
)

// maxRefusals is after how many refusals a sweep leaves the rest to the next one:
// a bucket that lets nothing be removed is not asked a thousand times for it.
const maxRefusals = 8

// Patience decides when a sweep over a bucket gives up. One that does not answer
// is asked once. One that refuses is asked a few times more, as it may refuse a
// single object (one under a legal hold, for instance), which must not stand
// before all others for ever: who uses it goes through its objects in an order
// that changes. The zero value is ready.
type Patience struct{ refusals int }

// Over takes what became of one object and reports whether the rest is the next
// sweep's.
func (p *Patience) Over(err error) bool {
	u, ok := errors.AsType[*Unavailable](err)
	switch {
	case !ok:
		return errors.Is(err, ErrUnavailable)
	case !u.Refused:
		return true
	}
	p.refusals++
	return p.refusals >= maxRefusals
}

func shuffle(names []string) {
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
}

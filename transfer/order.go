package transfer

import "github.com/portolan/portolan/transfer/places"

// order is where a task stands among others of its lanes. mu is held.
func (t *task) order() places.Order {
	o := places.Order{Priority: t.terms.Priority}
	switch t.kind {
	case kept: // a client waits for it
		o.Priority = 2
	case large: // nobody can pull by it before it is here
		o.Priority = 1
	}
	if !t.at.IsZero() {
		o.At = t.at.UnixNano()
	}
	return o
}

package swarm

// The list comes with the answer to the first request. If that stream ends before it
// came, as one that was lent may at any time, nothing else would ask for it: without a
// list no unit can be asked for, and the flight would wait for the stall time.

// unopened notes that a stream ended that may have been to bring the list.
func (l *lane) unopened() {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.relist = true
}

// reopens says whether the list is to be asked for once more; flight.mu is held.
func (l *lane) reopens() bool { return l.relist && l.f.vessel == nil && !l.f.complete }

// reopen asks for the list once more, if it has not come.
func (l *lane) reopen() (order, bool) {
	f := l.f
	f.mu.Lock()
	due := l.reopens()
	l.relist = false
	f.mu.Unlock()
	if !due {
		return order{}, false
	}
	o := f.opening()
	o.class = f.purpose()
	l.note(o)
	return o, true
}

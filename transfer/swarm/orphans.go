package swarm

const (
	// orphanShare: a flight that nobody waits for goes on when more than one part
	// in this many is here.
	orphanShare = 4
	// maxOrphans bounds the flights that nobody waits for any more, orphansEach those
	// that one subject left: who begins pulls and ends them keeps nobody else's from
	// going on.
	maxOrphans  = 16
	orphansEach = 4
)

// orphans counts the flights that nobody waits for any more, by the subject that left
// them; rules are one, too. Swarm.mu guards it.
type orphans struct {
	all int
	of  map[string]int
}

// add says whether there is room for one more, and takes it.
func (o *orphans) add(subject string) bool {
	if o.all >= maxOrphans || o.of[subject] >= orphansEach {
		return false
	}
	o.all++
	o.of[subject]++
	return true
}

func (o *orphans) drop(subject string) {
	o.all--
	if o.of[subject]--; o.of[subject] == 0 {
		delete(o.of, subject)
	}
}

// adopted ends being an orphan: somebody waits for it again, or it is over. Swarm.mu is
// held.
func (f *flight) adopted() {
	if f.orphan {
		f.orphan = false
		f.s.orphans.drop(f.leftBy)
	}
}

// leave counts a caller out and decides what becomes of the flight. One of which much
// is here goes on in the background; where there are too many of those it ends and keeps
// what came, so that the next one goes on from there.
func (s *Swarm) leave(f *flight, reader bool, subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reader {
		f.readers--
		f.reading.Add(-1)
	} else {
		f.fetchers--
	}
	s.count(f)
	if f.readers+f.fetchers > 0 || f.ended() || f.dropped {
		return
	}
	much := !f.pass && (f.proving.Load() || f.share() > 1.0/orphanShare)
	if much && !s.closed && s.orphans.add(subject) {
		f.orphan, f.leftBy = true, subject
		return
	}
	f.dropped, f.keeps = true, much
	f.cancel()
}

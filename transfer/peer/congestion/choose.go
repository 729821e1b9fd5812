package congestion

import "time"

const (
	// step lies between two looks at a connection.
	step = time.Second
	// leastSegments is how many must have been sent since the last look for
	// losses to tell something.
	leastSegments = 64
	// fullLoss is the share of segments that bbr sends again where flows fill a
	// queue; one flow alone, and links that lose packets, stay below.
	fullLoss = 0.01
	// randomLoss is the share from which on cubic is slowed down on long links: at
	// 100 ms, one lost packet of 5000 takes two thirds of 100 Mbit/s.
	randomLoss = 0.0002
	// A queue is full where round trips are longer than the shortest by half of it,
	// and empty where they are not by a tenth; slackRTT is the kernel's own part.
	slackRTT = 2 * time.Millisecond
	// sure is how many looks in a row must speak for a change: one may have met the
	// end of a start.
	sure = 2
	// firstStay is how long a choice holds at least. It doubles with each change up
	// to longestStay: a connection that is neither here nor there is left alone.
	firstStay, longestStay = 3 * time.Second, 2 * time.Minute
)

// Algorithms by the names that the kernel has for them.
const (
	bbr   = "bbr"
	cubic = "cubic"
	reno  = "reno"
)

// counters are what the kernel says of a connection.
type counters struct {
	algorithm     string
	sent, resent  uint64 // segments with data
	rtt, shortest time.Duration
}

// judge decides for one connection. It reads no clock.
type judge struct {
	last   counters
	seen   bool
	until  time.Time // the choice holds
	stay   time.Duration
	no     map[string]bool // what the kernel refused
	wanted int             // looks in a row that spoke for a change
}

// look takes the counters and gives the algorithm to change to; "": none. shared
// says that other connections of this process send as well: bbr alone may lose some
// while it starts or looks for more, and is not better off otherwise.
func (j *judge) look(c counters, shared bool, now time.Time) string {
	last, seen := j.last, j.seen
	if seen && c.algorithm == last.algorithm && c.sent-last.sent < leastSegments {
		return "" // they are counted on
	}
	j.last, j.seen = c, true
	if !seen || c.algorithm != last.algorithm || now.Before(j.until) {
		return ""
	}
	loss := float64(c.resent-last.resent) / float64(c.sent-last.sent)
	to := ""
	switch {
	case c.algorithm == bbr && shared && loss >= fullLoss && c.rtt > c.shortest*3/2+slackRTT:
		to = j.allowed(cubic, reno)
	case c.algorithm != bbr && loss >= randomLoss && c.rtt < c.shortest*11/10+slackRTT:
		to = j.allowed(bbr)
	}
	if to == "" {
		j.wanted = 0
		return ""
	}
	if j.wanted++; j.wanted < sure {
		return ""
	}
	j.wanted = 0
	j.stay = min(max(firstStay, 2*j.stay), longestStay)
	j.until = now.Add(j.stay)
	return to
}

// refused notes that the kernel does not have an algorithm for this process.
func (j *judge) refused(algorithm string) {
	if j.no == nil {
		j.no = map[string]bool{}
	}
	j.no[algorithm] = true
	j.until = time.Time{}
}

func (j *judge) allowed(algorithms ...string) string {
	for _, a := range algorithms {
		if !j.no[a] {
			return a
		}
	}
	return ""
}

// busy says whether enough was sent since the last look for losses to tell something.
func (j *judge) busy(c counters) bool { return j.seen && c.sent-j.last.sent >= leastSegments }

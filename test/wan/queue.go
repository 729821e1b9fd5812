package wan

import (
	"math"
	"time"
)

const (
	never    = math.MaxInt64
	minQueue = 256 << 10 // bytes: a short queue at a slow rate would drop single bursts
)

// packet is an IPv4 packet, buf[:n], in a fifo.
type packet struct {
	next *packet
	link *link
	due  int64 // when it leaves the fifo
	n    int
	buf  []byte
}

// fifo is a queue of packets with non-decreasing due times.
type fifo struct{ head, tail *packet }

func (q *fifo) push(p *packet) {
	p.next = nil
	if q.head == nil {
		q.head = p
	} else {
		q.tail.next = p
	}
	q.tail = p
}

func (q *fifo) pop() *packet {
	p := q.head
	q.head = p.next
	return p
}

// due is when the first packet is due.
func (q *fifo) due() int64 {
	if q.head == nil {
		return never
	}
	return q.head.due
}

// shaper is a fixed-rate transmitter behind a tail-drop queue, that is, a token
// bucket one packet deep. It only does the arithmetic and holds no packets.
type shaper struct {
	rate  Rate  // 0: unlimited
	queue int   // bytes that may wait
	free  int64 // when everything accepted so far has left
}

// admit accepts n bytes that arrive at time t and returns when they have left,
// or false if the queue is full.
func (s *shaper) admit(t int64, n int) (int64, bool) {
	if s.rate == 0 {
		return t, true
	}
	perByte := 8e9 / float64(s.rate)
	if float64(s.free-t) > float64(s.queue)*perByte {
		return 0, false
	}
	s.free = max(s.free, t) + int64(math.Ceil(float64(n)*perByte))
	return s.free, true
}

// set changes rate and queue. queue 0 stands for what the rate carries in span,
// but at least minQueue.
func (s *shaper) set(rate Rate, queue int, span time.Duration) {
	if s.rate, s.queue = rate, queue; queue == 0 {
		s.queue = max(minQueue, int(float64(rate)/8*span.Seconds()))
	}
}

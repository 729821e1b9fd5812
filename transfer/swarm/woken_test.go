package swarm

import (
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// deadlined is a stream that notes how far away its read deadline is at each read.
type deadlined struct {
	stream
	at    time.Time
	reads []time.Duration
	sets  int
}

func (d *deadlined) SetReadDeadline(t time.Time) error {
	d.at = t
	d.sets++
	return nil
}

func (d *deadlined) Read(b []byte) (int, error) {
	d.reads = append(d.reads, time.Until(d.at))
	if len(b) == 0 {
		return 0, errors.New("nothing was asked for")
	}
	return len(b), nil
}

// TestPatient_NoReadBeginsWithoutTime: a budget that lets little through makes the
// reader wait between its reads for longer than a holder may be silent. The muxer
// gives the window back under the read's deadline, so that must not be over.
func TestPatient_NoReadBeginsWithoutTime(t *testing.T) {
	const quiet, stall = 2 * time.Second, 10 * time.Second
	for _, each := range []time.Duration{0, 100 * time.Millisecond, quiet - time.Millisecond, 3 * stall} {
		synctest.Test(t, func(t *testing.T) {
			st := &deadlined{}
			s := &session{st: st, stall: stall, quiet: quiet, giveUp: func() bool { return true }}
			s.pace = func(n int) (int, error) {
				<-time.After(each)
				return min(n, 4<<10), nil
			}
			const reads = 100
			if err := s.readFull(make([]byte, reads*4<<10), nil); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if len(st.reads) != reads {
				t.Fatalf("%d reads, want %d: the test proves nothing", len(st.reads), reads)
			}
			for i, left := range st.reads {
				if left < quiet/2 || left > quiet {
					t.Fatalf("%s between reads: read %d began %s before its deadline, want half of %s to all of it", each, i, left, quiet)
				}
			}
			if each == 0 && st.sets > 2 {
				t.Errorf("%d timers for %d reads at once", st.sets, reads)
			}
		})
	}
}

// over is a stream that says for every read that its time is over, whatever its deadline.
type over struct {
	deadlined
}

func (o *over) Read([]byte) (int, error) {
	o.reads = append(o.reads, time.Until(o.at))
	return 0, os.ErrDeadlineExceeded
}

// TestPatient_AStreamWhoseTimeIsAlwaysOver: nothing will come of it, and a reader that
// tried until the limit would take a processor for so long.
func TestPatient_AStreamWhoseTimeIsAlwaysOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &over{}
		s := &session{st: st, stall: time.Minute, quiet: 2 * time.Second, giveUp: func() bool { return false }}
		if err := s.readFull(make([]byte, 10), nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if len(st.reads) > 2 {
			t.Errorf("%d reads", len(st.reads))
		}
	})
}

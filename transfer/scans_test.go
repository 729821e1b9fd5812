package transfer

import (
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// A pull that brings more than the inbox takes costs one scan, at its end; a storm of
// such pulls a tenth of a processor.
func TestScans_AfterAnOverflow(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := newScans(func() time.Time { return now })
	pid := identity.ProjectID{1}
	takes := func() (depth, bool) {
		_, how, ok, _ := s.take()
		return how, ok
	}
	for range 100 {
		s.overflowed(pid)
		now = now.Add(time.Second)
		if _, ok := takes(); ok {
			t.Fatal("a scan during a pull")
		}
	}
	s.settle(pid)
	s.settle(pid) // of another peer, which brought less
	now = now.Add(scanGather)
	if how, ok := takes(); !ok || how != settled {
		t.Fatalf("at the end of the pull: %v, %v", how, ok)
	}
	const took = 10 * time.Second // of all processors
	s.done(pid, took)
	scans := 0
	for range 1000 {
		now = now.Add(time.Second)
		s.overflowed(pid)
		s.settle(pid)
		if _, ok := takes(); ok {
			scans++
			s.done(pid, took)
		}
	}
	if want := 1000 / int(scanShare*took/time.Second); scans != want {
		t.Errorf("%d scans in 1000 s of a storm, want %d", scans, want)
	}
	s.ask(pid, whole) // other rules: at once
	if how, ok := takes(); !ok || how != whole {
		t.Errorf("%v, %v", how, ok)
	}
	s.forget(pid)
	if len(s.rest)+len(s.over)+len(s.due) != 0 {
		t.Errorf("a project that left is remembered: %v, %v, %v", s.rest, s.over, s.due)
	}
}

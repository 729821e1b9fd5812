package sync

import (
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/identity"
)

// TestAnnouncements_FitGossip: however much heads say, none is too large to be sent,
// and none is left out.
func TestAnnouncements_FitGossip(t *testing.T) {
	for _, written := range []uint64{0, 1, math.MaxUint64} {
		for _, feed := range []bool{false, true} {
			const count = 100
			var heads []*Head
			for range count {
				pid := identity.NewProjectID()
				heads = append(heads, &Head{ProjectId: pid[:], VectorHash: math.MaxUint64, WrittenInc: written, WrittenSeq: written, Written: written})
			}
			said, fed := 0, 0
			notes := announcements(heads, feed)
			for _, note := range notes {
				if n := proto.Size(note); n > gossip.MaxPayload {
					t.Errorf("an announcement of %d heads is %d bytes, more than gossip sends", len(note.GetHeads()), n)
				}
				said += len(note.GetHeads())
				if note.GetFeed() {
					fed++
				}
			}
			if said != count || len(notes) > 6 || (fed == 1) != feed {
				t.Errorf("%d of %d heads in %d announcements, %d of which speak of the feed", said, count, len(notes), fed)
			}
		}
	}
	if n := len(announcements(nil, true)); n != 1 {
		t.Errorf("of the feed alone: %d announcements", n)
	}
	if n := len(announcements(nil, false)); n != 0 {
		t.Errorf("of nothing: %d announcements", n)
	}
}

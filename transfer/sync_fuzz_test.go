package transfer_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	syncer "github.com/portolan/portolan/transfer/sync"
)

// FuzzSync sends what a member should not to each protocol of the exchange, over
// a real stream: never a panic, never more than the member may ask for, the stream
// ends, and the next question is answered.
func FuzzSync(f *testing.F) {
	b := newBed(f, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	fra.push(pid, "app", "1.0")
	eventually(f, "both have it", func() bool { return equal(pid, fra, nyc) })
	framed := func(m proto.Message) []byte {
		body, err := proto.Marshal(m)
		must(f, err)
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	heads := framed(&syncer.CatalogueRequest{Question: &syncer.CatalogueRequest_Heads{Heads: &syncer.HeadsRequest{}}})
	pull := framed(&syncer.CatalogueRequest{Question: &syncer.CatalogueRequest_Pull{Pull: &syncer.PullRequest{ProjectId: pid[:], PageBytes: 1 << 31}}})
	protocols := []string{"/portolan/catalogue/1", "/portolan/feed/1", "/portolan/ask/1"}
	f.Add(uint8(0), heads)
	f.Add(uint8(0), append(pull, heads...))
	f.Add(uint8(0), framed(&syncer.CatalogueRequest{Question: &syncer.CatalogueRequest_Pull{Pull: &syncer.PullRequest{ProjectId: pid[:8], Vector: []byte{255, 255}}}}))
	f.Add(uint8(1), framed(&syncer.FeedRequest{}))
	f.Add(uint8(2), framed(&syncer.AskRequest{ProjectId: pid[:], Question: &syncer.AskRequest_Has{Has: &syncer.HasRequest{Repository: "app"}}}))
	f.Add(uint8(2), []byte{255, 255, 255, 255, 1})
	f.Add(uint8(0), []byte{0, 0, 1, 0, 1, 2, 3}) // a frame without end
	f.Fuzz(func(t *testing.T, which uint8, in []byte) {
		converse := func(protocol string, say []byte) int64 {
			st, err := nyc.host.Open(t.Context(), fra.id.ID, protocol)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Reset()
			_ = st.SetDeadline(time.Now().Add(within))
			_, _ = st.Write(say) // it may be cut off meanwhile
			_ = st.CloseWrite()
			n, err := io.Copy(io.Discard, st)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the stream does not end")
			}
			return n
		}
		converse(protocols[int(which)%len(protocols)], in)
		if converse(protocols[0], heads) == 0 {
			t.Fatal("no answer to an honest question any more")
		}
	})
}

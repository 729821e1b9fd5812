package transfer_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// written is what n stores wrote of a project, one tag each: the pages of a delta that
// has it all, what their sender had seen, and what the tags say.
func written(t *testing.T, pid identity.ProjectID, n int) (pages []catalog.Page, seen catalog.Vector, tags map[string]digest.Digest) {
	t.Helper()
	// One store writes, and the others write the same under names of the same length:
	// in a page these stand as they are.
	c, err := catalog.Open("", catalog.Options{InMemory: true})
	must(t, err)
	defer func() { must(t, c.Close()) }()
	const name = "t-00000"
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"annotations":{"of":%q}}`, v1.MediaTypeImageManifest, name)
	_, err = c.PutManifest(t.Context(), catalog.Put{PID: pid, Repo: "app", Digest: digest.FromBytes(body), MediaType: v1.MediaTypeImageManifest,
		Size: int64(len(body)), Bytes: body, Tags: []string{name}, Home: "fra", Actor: "user:admin"})
	must(t, err)
	var model catalog.Page
	noted, err := c.Delta(t.Context(), pid, catalog.Vector{}, catalog.MaxPageBytes, func(p catalog.Page) error {
		model = append(model, p...)
		return nil
	})
	must(t, err)
	if len(noted.Vector) != 1 {
		t.Fatalf("a store that wrote once: %v", noted.Vector)
	}
	raw := func(d digest.Digest) []byte {
		sum, err := hex.DecodeString(d.Encoded())
		must(t, err)
		return sum
	}
	seen, tags = catalog.Vector{}, map[string]digest.Digest{}
	for inc, seq := range noted.Vector {
		for i := range n {
			other := fmt.Sprintf("t-%05d", i)
			as := identity.NewIncarnation()
			text := bytes.ReplaceAll(body, []byte(name), []byte(other))
			d := digest.FromBytes(text)
			page := bytes.ReplaceAll(model, []byte(name), []byte(other))
			page = bytes.ReplaceAll(page, raw(digest.FromBytes(body)), raw(d))
			page = bytes.ReplaceAll(page, binary.LittleEndian.AppendUint64(nil, uint64(inc)), binary.LittleEndian.AppendUint64(nil, uint64(as)))
			seen[as], tags[other] = seq, d
			// Pages are messages: one behind the other they are one page.
			if last := len(pages) - 1; last >= 0 && len(pages[last])+len(page) < 1<<20 {
				pages[last] = append(pages[last], page...)
			} else {
				pages = append(pages, page)
			}
		}
	}
	return pages, seen, tags
}

// TestSwitch_MoreStoresThanACommandNames: each start of a node is a store of its own, and
// the command that ends a switch can't say of all what was seen of them. What it does not
// say is said of each tag: no tag counts as written too late, there or back.
func TestSwitch_MoreStoresThanACommandNames(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints)
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	pages, seen, want := written(t, pid, state.MaxSeen+150)
	cat := fra.store.Catalog()
	for _, page := range pages {
		_, err := cat.ApplyPage(t.Context(), pid, page)
		must(t, err)
	}
	must(t, cat.Adopt(t.Context(), pid, catalog.Vector{}, catalog.Noted{Vector: seen}))
	eventually(t, "nyc has it all", func() bool {
		v, err := nyc.store.Catalog().Vector(pid)
		return err == nil && v.Dominates(seen)
	})
	says := func(when string) {
		t.Helper()
		eventually(t, when+", the sites agree", func() bool { return equal(pid, fra, nyc) })
		for _, n := range b.nodes {
			for tag, d := range want {
				if got := n.tag(pid, "app", tag); got != d {
					t.Fatalf("%s: at %s %s says %q, want %q", when, n.name, tag, got, d)
				}
			}
			n.lostMu.Lock()
			if len(n.lost) > 0 {
				t.Errorf("%s: at %s %d tags lost, %+v is the first", when, n.name, len(n.lost), n.lost[0])
			}
			n.lostMu.Unlock()
		}
	}
	push := func(n *site, tag string) {
		t.Helper()
		d, err := n.tagged(t.Context(), pid, "app", n.name+tag, tag)
		must(t, err)
		want[tag] = d
	}
	says("before")
	for round, to := range []state.TagMode{state.StrongTags, state.EventualTags, state.StrongTags} {
		b.switchTo(p.ID, command.TagMode(to), false)
		eventually(t, "the switch to "+to.String(), switched(pid, to, fra, nyc))
		when := fmt.Sprintf("round %d, %s", round, to)
		if to == state.StrongTags {
			if n := len(fra.mode(pid).Seen) / 16; n != state.MaxSeen {
				t.Fatalf("%s: the command says %d stores: it is not full", when, n)
			}
			if n := fra.state.View().StrongTags(); n != len(want) {
				t.Errorf("%s: %d strong tags, want %d", when, n, len(want))
			}
		}
		says(when)
		// Written anew, first and last, and a new one.
		push(fra, "t-00000")
		push(nyc, fmt.Sprintf("t-%05d", state.MaxSeen+149))
		push(nyc, strings.Repeat("n", round+1))
		eventually(t, when+", pushes are everywhere", func() bool { return equal(pid, fra, nyc) })
		says(when + ", after pushes")
	}
}

// TestSwitch_WhileASiteLeaves: what only a leaving site has is waited for, and becomes
// strong, before the site is out.
func TestSwitch_WhileASiteLeaves(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	b.part(fra, sgp)
	b.part(nyc, sgp)
	only, err := sgp.tagged(t.Context(), pid, "app", "only", "1")
	must(t, err)
	b.sites(pid, false, "fra", "nyc")
	sgp.steady(t, pid, state.Leaving)
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	eventually(t, "sgp is waited for", func() bool {
		w := fra.door.AskWaiting(t.Context(), pid)
		return len(w) == 1 && w[0].Site == "sgp"
	})
	if _, err := fra.tagged(t.Context(), pid, "app", "other", "1"); !later(err) {
		t.Errorf("a push while the tags switch: %v", err)
	}
	b.join(fra, sgp)
	b.join(nyc, sgp)
	eventually(t, "the switch is done", switched(pid, state.StrongTags, fra, nyc))
	if late := fra.mode(pid).Late; len(late) != 0 {
		t.Errorf("late: %v", late)
	}
	for _, n := range []*site{fra, nyc} {
		row, ok := n.state.View().StrongTag(pid, "app", "1")
		if !ok || row.Digest != only.String() {
			t.Errorf("%s: the leaving site's tag is %+v in the state", n.name, row)
		}
	}
	sgp.steady(t, pid, state.Out)
	two, err := nyc.tagged(t.Context(), pid, "app", "two", "1")
	must(t, err)
	eventually(t, "those that stay agree", func() bool { return fra.tag(pid, "app", "1") == two && equal(pid, fra, nyc) })
	// And back, without it.
	b.switchTo(p.ID, command.TagMode_TAG_MODE_EVENTUAL, false)
	eventually(t, "the switch back", switched(pid, state.EventualTags, fra, nyc))
	if fra.tag(pid, "app", "1") != two || nyc.tag(pid, "app", "1") != two {
		t.Errorf("after the switch back: %s and %s, want %s", fra.tag(pid, "app", "1"), nyc.tag(pid, "app", "1"), two)
	}
}

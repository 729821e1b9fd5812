package preflight

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// Result of one test.
type Result string

// The results. A test that nobody could make is unknown, which is not well.
const (
	OK      Result = "ok"
	Warning Result = "warning"
	Failed  Result = "failed"
	Unknown Result = "unknown"
)

// The tests, as a Line names them.
const (
	TestControl    = "control port"
	TestRaft       = "raft"
	TestGossipTCP  = "gossip tcp"
	TestGossipUDP  = "gossip udp"
	TestData       = "data port"
	TestRegistry   = "registry"
	TestAnswer     = "answer"
	TestKey        = "key"
	TestClock      = "clock"
	TestRoundTrip  = "round trip"
	TestThroughput = "throughput"
	TestSpace      = "space"
	TestStore      = "store"
	TestPause      = "pause"
)

var testOf = map[uint32]string{
	portControl: TestControl, portRaft: TestRaft, portGossip: TestGossipTCP, portData: TestData, portRegistry: TestRegistry, portPackets: TestGossipUDP,
}

const (
	// clockMost is how far clocks may differ before sites refuse one another's
	// writes of tags; clockWorth is worth a word: NTP does better.
	clockMost  = 60 * time.Second
	clockWorth = time.Second
	// spaceWorth is so little room on a disk that it is worth a word.
	spaceWorth = 1 << 30
	// slowMbit is so slow that it is worth a word, where no cap makes it so.
	slowMbit = 1
)

// Line is what came of one test.
type Line struct {
	Test     string
	From, To string // sites: the direction
	Result   Result
	Detail   string  // what was tried and found
	Advice   string  // what to do; empty: nothing
	Value    float64 // of a measurement, in Unit
	Unit     string
}

// Report is what came of a check.
type Report struct {
	From, To string // sites
	Node     identity.NodeID
	At       time.Time
	Took     time.Duration
	Lines    []Line
}

// report judges what was found.
func (k *check) report() *Report {
	r := &Report{From: k.self.Site, To: k.to.Site, Node: k.to.ID}
	there, back := k.findings(k.there), map[uint32]*Finding{}
	if k.answer != nil {
		back = k.findings(k.answer.GetFindings())
	}
	for _, port := range []uint32{portControl, portRaft, portGossip, portPackets, portData, portRegistry} {
		content := !k.self.Witness && !k.to.Witness
		if port == portData && !content {
			continue
		}
		if port == portPackets {
			if k.answer == nil {
				r.add(k.unknown(port, k.self, k.to))
			} else {
				heard := k.answer.GetHeard()
				r.add(packetLine(k.self, k.to, heard[0], heard[1]))
			}
		} else if port != portRegistry || k.to.RegistryURL != "" {
			r.add(portLine(port, k.self, k.to, there[port]))
		}
		switch {
		case port == portRegistry && k.self.RegistryURL == "":
		case k.answer == nil:
			r.add(k.unknown(port, k.to, k.self))
		case port == portPackets:
			r.add(packetLine(k.to, k.self, k.came[0], k.came[1]))
		default:
			r.add(portLine(port, k.to, k.self, back[port]))
		}
	}
	r.add(k.answerLine())
	r.add(k.keyLine(there, back))
	r.add(k.clockLines()...)
	if k.p.Host != nil && !k.to.Witness {
		r.add(k.throughputLine(k.self, k.to, k.out), k.throughputLine(k.to, k.self, k.in), k.spaceLine(), k.storeLine())
	}
	r.add(k.pauseLines()...)
	return r
}

// pauseLines fail, though nothing is wrong with the path: who checks one wants to
// know whether content moves on it, and may not know of the pause. With no other
// line that fails the path is well, and can be told so before the pause ends.
func (k *check) pauseLines() (lines []Line) {
	for _, way := range [][2]string{{k.self.Site, k.to.Site}, {k.to.Site, k.self.Site}} {
		if p, paused := k.view.Paused(way[1]); paused {
			lines = append(lines, Line{Test: TestPause, From: way[0], To: way[1], Result: Failed,
				Detail: fmt.Sprintf("rules bring nothing to %s: it is paused since %s by %s", p.Site, p.At.UTC().Format(time.RFC3339), p.By),
				Advice: "let it go on with: portolan transfer resume " + p.Site})
		}
	}
	return lines
}

func (r *Report) add(lines ...Line) { r.Lines = append(r.Lines, lines...) }

func (k *check) findings(list []*Finding) map[uint32]*Finding {
	out := map[uint32]*Finding{}
	for _, f := range list {
		out[f.GetPort()] = f
	}
	return out
}

// number and option of a port, for people.
func portOf(port uint32, n state.Node) (what string) {
	switch port {
	case portControl, portRaft:
		return fmt.Sprintf("TCP port %d (--control-port)", n.ControlPort)
	case portGossip:
		return fmt.Sprintf("TCP port %d (--gossip-port)", n.GossipPort)
	case portPackets:
		return fmt.Sprintf("UDP port %d (--gossip-port)", n.GossipPort)
	case portData:
		return fmt.Sprintf("TCP port %d (--data-port)", n.DataPort)
	}
	return "the registry's port (--http)"
}

func portLine(port uint32, from, to state.Node, f *Finding) Line {
	l := Line{Test: testOf[port], From: from.Site, To: to.Site, Result: OK}
	switch {
	case f == nil:
		l.Result, l.Detail = Unknown, "it was not tried"
		l.Advice = "upgrade both nodes to one version"
	case f.GetError() != "":
		l.Result, l.Detail = Failed, fmt.Sprintf("%s: %s", clip(f.GetAddress()), clip(f.GetError()))
		l.Advice = advice(port, from, to, f)
	default:
		l.Detail = fmt.Sprintf("%s: connected in %s", clip(f.GetAddress()), time.Duration(f.GetTookNs()).Round(100*time.Microsecond))
		if f.GetNote() != "" {
			l.Result, l.Detail = Warning, l.Detail+"; "+clip(f.GetNote())
			l.Advice = fmt.Sprintf("have the clients of %s trust its certificate, or give it another (--tls-cert)", to.Site)
		}
	}
	return l
}

func advice(port uint32, from, to state.Node, f *Finding) string {
	what := portOf(port, to)
	switch {
	case f.GetOtherKey():
		return fmt.Sprintf("another machine answers there: correct the address of %s (--advertise), or what forwards %s", to.Site, what)
	case strings.Contains(f.GetError(), "refused"):
		return fmt.Sprintf("nothing listens there: see that the node of %s runs and that %s reaches it from %s", to.Site, what, from.Site)
	case strings.Contains(f.GetError(), "no answer") || strings.Contains(f.GetError(), "timeout"):
		return fmt.Sprintf("open %s of %s for %s: something on the way drops it", what, to.Site, from.Site)
	case strings.Contains(f.GetError(), "resolved"):
		return fmt.Sprintf("have %s resolve the name, or give %s an address (--advertise)", from.Site, to.Site)
	}
	return fmt.Sprintf("see that %s of %s is reached from %s, and the log of its node", what, to.Site, from.Site)
}

func packetLine(from, to state.Node, small, full bool) Line {
	l := Line{Test: TestGossipUDP, From: from.Site, To: to.Site, Result: OK, Detail: "small and full packets arrive"}
	switch {
	case full:
	case small:
		l.Result, l.Detail = Failed, "small packets arrive, full ones (1,400 bytes) do not"
		l.Advice = fmt.Sprintf("raise the MTU on the way from %s to %s to 1,500 bytes, or let fragments through", from.Site, to.Site)
	default:
		l.Result, l.Detail = Failed, fmt.Sprintf("no packet of %s arrived at %s", from.Site, to.Site)
		l.Advice = fmt.Sprintf("open %s of %s for %s", portOf(portPackets, to), to.Site, from.Site)
	}
	return l
}

// unknown is the line of a direction that the other side would have had to try.
func (k *check) unknown(port uint32, from, to state.Node) Line {
	return Line{Test: testOf[port], From: from.Site, To: to.Site, Result: Unknown, Detail: k.to.Site + " could not be asked"}
}

func (k *check) answerLine() Line {
	l := Line{Test: TestAnswer, From: k.self.Site, To: k.to.Site, Result: OK, Detail: "asked by way of " + k.way}
	switch {
	case k.answer == nil:
		reason := "no way to it is known"
		if k.refusal != nil {
			reason = strings.ReplaceAll(k.refusal.Error(), "\n", "; ")
		}
		l.Result, l.Detail = Failed, fmt.Sprintf("%s could not be asked to try its half: %s", k.to.Site, clip(reason))
		l.Advice = fmt.Sprintf("mend the way from %s to %s first, and check again; or check from the other side: portolan site check %s --server URL-OF-%s", k.self.Site, k.to.Site, k.self.Site, strings.ToUpper(k.to.Site))
	case k.refusal != nil:
		l.Result, l.Detail = Warning, l.Detail+"; "+clip(strings.ReplaceAll(k.refusal.Error(), "\n", "; "))
	}
	return l
}

func (k *check) keyLine(there, back map[uint32]*Finding) Line {
	l := Line{Test: TestKey, From: k.self.Site, To: k.to.Site, Result: Unknown, Detail: "no port answered that shows it"}
	shown := 0
	for _, side := range []struct {
		at    state.Node
		found map[uint32]*Finding
	}{{k.to, there}, {k.self, back}} {
		for _, port := range []uint32{portControl, portRaft, portData} {
			f := side.found[port]
			switch {
			case f == nil:
			case f.GetOtherKey():
				l.Result, l.Detail = Failed, fmt.Sprintf("a node with another key than %s answers at %s", side.at.ID.Short(), clip(f.GetAddress()))
				l.Advice = fmt.Sprintf("correct the address of %s (--advertise); if its directory was lost, remove the site and let it join again", side.at.Site)
				return l
			case f.GetError() == "":
				shown++
			}
		}
	}
	if shown > 0 {
		l.Result, l.Detail = OK, fmt.Sprintf("%d handshakes showed the keys that the mesh knows (%s)", shown, k.to.ID.Short())
	}
	return l
}

func (k *check) clockLines() []Line {
	clock := Line{Test: TestClock, From: k.self.Site, To: k.to.Site, Result: Unknown, Detail: k.to.Site + " could not be asked"}
	trip := Line{Test: TestRoundTrip, From: k.self.Site, To: k.to.Site, Result: Unknown, Detail: clock.Detail}
	if !k.clockOK {
		return []Line{clock, trip}
	}
	off, unsure := k.clock.offset, k.clock.trip/2
	clock.Value, clock.Unit, clock.Result = off.Seconds(), "s", OK
	clock.Detail = fmt.Sprintf("%s is %s ahead, give or take %s", k.to.Site, off.Round(time.Millisecond), unsure.Round(100*time.Microsecond))
	if off < 0 {
		clock.Detail = fmt.Sprintf("%s is %s behind, give or take %s", k.to.Site, (-off).Round(time.Millisecond), unsure.Round(100*time.Microsecond))
	}
	switch {
	case off.Abs()-unsure > clockMost:
		clock.Result, clock.Advice = Failed, fmt.Sprintf("set the clocks of %s and %s by NTP: beyond %s pushes of tags are refused", k.self.Site, k.to.Site, clockMost)
	case off.Abs()-unsure > clockWorth:
		clock.Result, clock.Advice = Warning, fmt.Sprintf("set the clocks of %s and %s by NTP", k.self.Site, k.to.Site)
	}
	trip.Result, trip.Value, trip.Unit = OK, float64(k.clock.trip.Microseconds())/1000, "ms"
	trip.Detail = "by way of " + cmp.Or(k.way, "the way that answered")
	return []Line{clock, trip}
}

// capOf is the narrowest cap on a link, in Mbit/s; 0: none.
func (k *check) capOf(from, to string) (most uint32) {
	for _, pair := range [][2]string{{from, to}, {from, ""}, {"", to}} {
		if b, ok := k.view.Budget(pair[0], pair[1]); ok && (most == 0 || b.Mbit < most) {
			most = b.Mbit
		}
	}
	return most
}

func (k *check) throughputLine(from, to state.Node, b burst) Line {
	l := Line{Test: TestThroughput, From: from.Site, To: to.Site, Result: OK}
	if b.err != nil {
		l.Result, l.Detail = Failed, "no bytes could be moved as replication does: "+clip(phrase(b.err))
		l.Advice = fmt.Sprintf("open %s of %s or %s of %s", portOf(portData, to), to.Site, portOf(portData, from), from.Site)
		if !b.closed && k.reachesData() {
			l.Advice = fmt.Sprintf("check again in a minute: the data port of %s is open, and its node may have other checks to answer", k.to.Site)
		}
		return l
	}
	l.Value, l.Unit = b.mbit(), "Mbit/s"
	l.Detail = fmt.Sprintf("%.1f MiB in %.1f s", float64(b.bytes)/(1<<20), b.took.Seconds())
	if most := k.capOf(from.Site, to.Site); most > 0 {
		l.Detail += fmt.Sprintf(", of a cap of %d Mbit/s", most)
	} else if l.Value < slowMbit {
		l.Result, l.Advice = Warning, "see what else uses the link: it is slower than 1 Mbit/s"
	}
	return l
}

// reachesData: this node's own dial of the data port went well.
func (k *check) reachesData() bool {
	for _, f := range k.there {
		if f.GetPort() == portData {
			return f.GetError() == ""
		}
	}
	return false
}

func (k *check) spaceLine() Line {
	l := Line{Test: TestSpace, From: k.self.Site, To: k.to.Site, Result: Unknown, Detail: k.to.Site + " could not be asked"}
	room := k.answer.GetRoom()
	if room == nil {
		return l
	}
	l.Result, l.Value, l.Unit = OK, float64(room.GetLeft())/(1<<30), "GiB"
	l.Detail = fmt.Sprintf("%.1f of %.1f GiB are free at %s, %.1f GiB of them for blobs", float64(room.GetFree())/(1<<30), float64(room.GetTotal())/(1<<30), k.to.Site, l.Value)
	if room.GetBucket() {
		l.Detail += ", which end in its bucket"
	}
	switch {
	case room.GetError() != "":
		l.Result, l.Detail = Failed, clip(room.GetError())
		l.Advice = fmt.Sprintf("free space on the disk of %s: nothing can be brought there", k.to.Site)
	case room.GetLeft() < spaceWorth:
		l.Result, l.Advice = Warning, fmt.Sprintf("free space on the disk of %s soon", k.to.Site)
	}
	return l
}

// maxText bounds what another node's word may fill.
const maxText = 500

// clip makes another node's word one line of bounded length, which a terminal shows
// as it is.
func clip(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return ' '
		}
		return r
	}, s)
}

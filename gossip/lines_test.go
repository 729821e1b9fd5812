package gossip

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRepeats(t *testing.T) {
	for line, want := range map[string]bool{
		"Failed to send gossip to 127.0.0.1:6311: write udp: use of closed network connection":  true,
		"Suspect node has failed, no acks received":                                             true,
		"Decrypt packet failed: no installed keys could decrypt the message from=192.0.2.1:9":   true,
		"Was able to connect to x over TCP but UDP probes failed, network may be misconfigured": true,
		"Refuting a suspect message (from: x)":                                                  true,
		"handler queue full, dropping message (3) from=192.0.2.1:9":                             false,
		"Encryption of message failed: x":                                                       false,
		"Ignoring an alive message for 'x' (192.0.2.1:1) because protocol version(s) are wrong": false,
	} {
		if repeats(line) != want {
			t.Errorf("%s: repeats is %v", line, !want)
		}
	}
}

// TestTellDeaf: a node whose UDP is blocked is named once, and again only after
// packets came through in between.
func TestTellDeaf(t *testing.T) {
	w := newWorld(t)
	var log syncBuffer
	cfg := w.config("fra")
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	a, b := w.start(cfg), w.start(w.config("sgp"))
	eventually(t, "they see one another", sees(a, b))
	const told = "open its gossip port for UDP"
	a.tellDeaf(time.Now())
	if strings.Contains(log.String(), told) {
		t.Fatal("a node is deaf at once")
	}
	late := time.Now().Add(deafAfter + time.Minute)
	a.tellDeaf(late)
	a.tellDeaf(late)
	eventually(t, "it is told", func() bool { return strings.Contains(log.String(), told) })
	if n := strings.Count(log.String(), told); n != 1 || !strings.Contains(log.String(), "site=sgp") {
		t.Fatalf("told %d times: %s", n, log.String())
	}
	eventually(t, "an answer to a packet ends it", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return !a.members[b.cfg.Self].deaf
	})
}

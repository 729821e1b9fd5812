package gossip

import (
	"net"
	"slices"
	"strings"
)

// ownTrouble begins the lines of memberlist that speak of this node's own state.
// All others come with nodes that are down or stop, with links that fail, or from
// strangers, at every probe; what matters of these is told by delegate, rejoinLoop
// and tellDeaf.
var ownTrouble = []string{
	"Encryption of message failed", "Failed to encode", "Failed to encrypt", "Failed to shutdown", "Failed push/pull merge",
	"Binding to public address without encryption", "Remote node state size", "Too many pending push/pull", "handler queue full",
}

// repeats implements telemetry.Repeats for memberlist.
func repeats(line string, _ ...any) bool {
	for _, begin := range ownTrouble {
		if strings.HasPrefix(line, begin) {
			return false
		}
	}
	// A node of another version, which is refused for it.
	return !strings.Contains(line, "protocol version(s) are wrong")
}

// refusedLines begin the lines by which memberlist tells that it took nothing of
// a packet or a stream. It has no other way to tell. TestMesh_CountsStrangers
// holds them to the version that is linked.
var refusedLines = []string{
	"Decrypt packet failed", "discarding packet", "discarding stream", "failed to receive", "cannot decode label", "label header cannot be empty",
	"missing message type", "Got invalid checksum",
}

// unreadable says whether a line of memberlist tells of what could not be read.
func unreadable(line string) bool {
	if strings.Contains(line, net.ErrClosed.Error()) {
		return false // closed by this node: counted where that was done
	}
	return slices.ContainsFunc(refusedLines, func(begin string) bool { return strings.HasPrefix(line, begin) })
}

package linear

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// tagKind of a call.
type tagKind int

const (
	tagRead   tagKind = iota // a strict GET
	tagPush                  // a PUT: whatever was there, or as the condition says
	tagDelete                // a DELETE: whatever was there, or as the condition says
)

// tagCall is what a client asked of one tag. Each push has a manifest of its own.
type tagCall struct {
	tag     string
	kind    tagKind
	digest  string // to push
	match   string // If-Match; "": none
	missing bool   // If-None-Match: *
}

// tagAnswer is what came back.
type tagAnswer struct {
	unknown bool   // nobody knows whether the tag was set or deleted: 503, or no answer
	refused bool   // 412: the condition does not hold
	gone    bool   // 404 to a deletion
	digest  string // of a read; "": 404
}

// tagModel is a register for each tag: the digest that it says, "" without one. A
// lost race (409) changed nothing and says nothing of one moment, so it is no part of a
// history: what a push left behind that was answered so would be read as a value that nobody wrote.
var tagModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		return partition(history, func(op porcupine.Operation) string { return op.Input.(tagCall).tag })
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		now, c, a := state.(string), in.(tagCall), out.(tagAnswer)
		fits := (c.match == "" || c.match == now) && (!c.missing || now == "")
		switch {
		case c.kind == tagRead:
			return a.digest == now, now
		case a.unknown && !fits:
			return true, now
		case a.gone:
			return now == "", now
		case a.refused:
			return !fits && (c.kind == tagPush || now != ""), now
		case c.kind == tagPush:
			return a.unknown || fits, c.digest
		}
		return a.unknown || fits && now != "", "" // a deletion
	},
	DescribeOperation: func(in, out any) string {
		c, a := in.(tagCall), out.(tagAnswer)
		what := [...]string{"read", "push", "delete"}[c.kind] + " " + c.tag
		if c.digest != "" {
			what += " " + brief(c.digest)
		}
		if c.match != "" {
			what += " if " + brief(c.match)
		}
		if c.missing {
			what += " if missing"
		}
		switch {
		case a.unknown:
			return what + " ?"
		case a.refused:
			return what + ": refused"
		case a.gone:
			return what + ": gone"
		case c.kind == tagRead:
			return what + fmt.Sprintf(": %q", brief(a.digest))
		}
		return what
	},
}

// brief is enough of a digest to tell it from others.
func brief(digest string) string {
	if len(digest) > 15 {
		return digest[len("sha256:"):15]
	}
	return digest
}

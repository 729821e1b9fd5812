package linear

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/anishathalye/porcupine"
)

// kind of a call.
type kind int

const (
	read  kind = iota // a strict read
	write             // an edit, whatever was there
	swap              // an edit of the version that its author saw
)

// call is what a client asked of one object: a user, whose comment is the value.
type call struct {
	object int64
	kind   kind
	value  string // to write
	seen   uint64 // version that a swap expects
}

// answer is what came back.
type answer struct {
	unknown bool // nobody knows whether the edit was made
	lost    bool // a swap: the version was another
	object       // of a read
}

// object is what the model knows of one.
type object struct {
	value   string
	version uint64
}

// partition parts a history by what its calls are about.
func partition[K comparable](history []porcupine.Operation, about func(porcupine.Operation) K) [][]porcupine.Operation {
	of := make(map[K][]porcupine.Operation)
	for _, op := range history {
		of[about(op)] = append(of[about(op)], op)
	}
	return slices.Collect(maps.Values(of))
}

// model is a map of objects, each by itself. The initial value is given by the
// object's first row: version 1, no comment.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		return partition(history, func(op porcupine.Operation) int64 { return op.Input.(call).object })
	},
	Init: func() any { return object{version: 1} },
	Step: func(state, in, out any) (bool, any) {
		s, c, a := state.(object), in.(call), out.(answer)
		changed := object{value: c.value, version: s.version + 1}
		switch c.kind {
		case read:
			return a.object == s, s
		case write:
			return true, changed
		default: // swap
			fits := c.seen == s.version
			switch {
			case a.unknown && fits:
				return true, changed
			case a.unknown:
				return true, s
			case fits:
				return !a.lost, changed
			}
			return a.lost, s
		}
	},
	Equal: func(a, b any) bool { return a.(object) == b.(object) },
	DescribeOperation: func(in, out any) string {
		c, a := in.(call), out.(answer)
		end := ""
		switch {
		case a.unknown:
			end = " ?"
		case a.lost:
			end = " lost"
		}
		switch c.kind {
		case read:
			return fmt.Sprintf("read %d: %q v%d", c.object, a.value, a.version)
		case write:
			return fmt.Sprintf("write %d: %q%s", c.object, c.value, end)
		}
		return fmt.Sprintf("swap %d v%d: %q%s", c.object, c.seen, c.value, end)
	},
}

// never is when a call returned of which nobody knows the end: it may have been
// made at any time since, or never, which is the same as after everything else.
const never = math.MaxInt64

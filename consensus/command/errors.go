package command

import (
	"fmt"
	"strings"
	"time"
)

// Result is what an applied command gives back.
type Result struct {
	// Index is the raft index at which the command was applied.
	Index uint64
	// ID is the object that it made or touched; 0 if it has none.
	ID int64
}

// Code classifies an Error. Numbers are on the wire and in snapshots: append only.
type Code uint32

// What a state machine refuses.
const (
	CodeInvalid  Code = iota + 1 // the command makes no sense, whatever the state is
	CodeNotFound                 // what it names is not there
	CodeExists                   // a name or an id is taken
	CodeConflict                 // the object's version is another than the caller saw
	CodeDenied                   // not allowed, or a wrong secret
	CodeExpired                  // a token's time is over
	CodeUsed                     // a token was used by someone else
)

// String gives the code's name, as in logs and metrics.
func (c Code) String() string {
	switch c {
	case CodeInvalid:
		return "invalid"
	case CodeNotFound:
		return "not found"
	case CodeExists:
		return "exists"
	case CodeConflict:
		return "conflict"
	case CodeDenied:
		return "denied"
	case CodeExpired:
		return "expired"
	case CodeUsed:
		return "used"
	default:
		return fmt.Sprintf("code %d", uint32(c))
	}
}

// Error is a refusal by the replicated state: the command was understood and
// nothing was changed. The message is one sentence for people.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, &Error{Code: c}) match every refusal with that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Message == "" || t.Message == e.Message)
}

// Unavailable means that nobody could decide: there is no leader, or it has no
// majority.
type Unavailable struct {
	// Reason is why, without a full stop: "no majority of the voters can be reached".
	Reason string
	// Sites are those of the voters that this node cannot reach, sorted.
	Sites []string
	// RetryAfter is when it is worth trying again.
	RetryAfter time.Duration
	// Indeterminate is set when the command may have been, or may yet be,
	// applied. Only a retry with the same request id is then safe.
	Indeterminate bool
	// Read is set when it was a strict read that nobody could answer.
	Read bool
}

func (e *Unavailable) Error() string {
	var b strings.Builder
	if e.Read {
		b.WriteString("a strict read is not possible now: ")
	} else {
		b.WriteString("edits are not possible now: ")
	}
	b.WriteString(e.Reason)
	if len(e.Sites) > 0 {
		b.WriteString("; cannot reach ")
		b.WriteString(strings.Join(e.Sites, ", "))
	}
	if e.Read {
		return b.String() + "; without strict consistency this node answers with what it has"
	}
	if e.Indeterminate {
		b.WriteString("; whether this edit was made is not known: look before you repeat it")
	} else {
		b.WriteString("; nothing was changed")
	}
	return b.String()
}

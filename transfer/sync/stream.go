package sync

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// The protocols of sync.proto.
const (
	catalogueProtocol = "/portolan/catalogue/1"
	feedProtocol      = "/portolan/feed/1"
	askProtocol       = "/portolan/ask/1"
)

const (
	// maxQuestion bounds a message that asks: a vector of 250,000 incarnations, one
	// for each start of a node that wrote to the project, or the digests of askBatch.
	maxQuestion = 4 << 20
	// maxAnswer bounds a message that answers. A page is aimed at pageBytes, but
	// entries of one write are never parted.
	maxAnswer = catalog.MaxPageBytes + 1<<20
	// pageBytes is what a page is aimed at: enough to fill a long link while the
	// one before is applied, little enough to keep one per stream in memory.
	pageBytes = 512 << 10
	// keepStream is how long the answering side leaves a stream open on which
	// nothing is asked.
	keepStream = 2 * time.Minute
	// answerWithin is how long either side waits for a stream to move while
	// something is being answered.
	answerWithin = 20 * time.Second
)

// refusedError is what a Refusal becomes at the asking side.
type refusedError struct {
	code    Refusal_Code
	message string
}

func (e *refusedError) Error() string { return "refused: " + e.message }

// Unwrap lets errors.Is find a project that is unknown there.
func (e *refusedError) Unwrap() error {
	if e.code == Refusal_CODE_UNKNOWN {
		return ErrUnknownProject
	}
	return nil
}

// IsRefusal reports whether a node answered, and the answer was no. Other errors of
// questions say that it did not answer.
func IsRefusal(err error) bool { return errors.As(err, new(*refusedError)) }

func refusal(code Refusal_Code, message string) *Refusal {
	return &Refusal{Code: code, Message: message}
}

func refused(r *Refusal) error { return &refusedError{code: r.GetCode(), message: r.GetMessage()} }

// talk is a stream to one peer that is kept between questions that follow one
// another. It has one user at a time.
type talk struct {
	host     Host
	to       identity.NodeID
	protocol string
	life     context.Context // of the stream
	s        plane.Stream
}

// ask writes the question and lets answer read what comes back. A kept stream
// may have ended since the last question: then it asks once more on a new one,
// which is safe because no question changes anything by being repeated.
func (t *talk) ask(ctx context.Context, question proto.Message, answer func(plane.Stream) error) error {
	for {
		fresh := t.s == nil
		if fresh {
			s, err := t.host.Open(t.life, t.to, t.protocol)
			if err != nil {
				return err
			}
			s.SetIdle(answerWithin)
			t.s = s
		}
		s := t.s
		stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
		err := peer.WriteMsg(s, question, maxQuestion)
		if err == nil {
			err = answer(s)
		}
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err == nil {
			return nil
		}
		var (
			no    *refusedError
			local *localError
		)
		ours := errors.As(err, &local)
		if !ours && errors.As(err, &no) && ctx.Err() == nil {
			return err // the peer said so, and the stream is at its next question
		}
		t.close()
		if fresh || ours || ctx.Err() != nil {
			return err
		}
	}
}

// rest ends the stream until something is asked again. One that nobody uses has a
// window at both ends, of which there are 256 among all peers (transfer/peer), and
// a new one costs no round trip.
func (t *talk) rest() {
	if t.s != nil {
		_ = t.s.Close()
		t.s = nil
	}
}

// close gives the stream up.
func (t *talk) close() {
	if t.s != nil {
		_ = t.s.Reset()
		t.s = nil
	}
}

// localError is a failure of this side, not of the stream: asking again would
// not mend it.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

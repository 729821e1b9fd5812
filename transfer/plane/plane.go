// Package plane says what a data plane is to those that use it: streams between
// nodes, as an interface, so that another one can be put in the place of
// transfer/peer. It has no data plane of its own; planetest has one in memory, and
// the tests that each has to pass.
//
// A data plane promises that the other end of a stream is the node that it names,
// and a member of the mesh; that nothing waits for ever (contexts and deadlines end
// it); and that what other nodes can claim of memory is bounded. It gives what is
// written in order and once, or fails; who the bytes are for, and whether they are
// right, is not its matter.
//
// Users declare the part that they need (swarm.Host, sync.Host, preflight.Host).
package plane

import (
	"context"
	"io"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// Stream is one stream to a member, in both directions. It takes one reader and one
// writer at a time; Reset may be called from anywhere.
type Stream interface {
	// Read and Write fail when nothing moved for the idle time, with an error whose
	// Timeout() is true, and when the stream was reset by either side.
	io.ReadWriter
	// SetIdle sets that time from the next call on; 0: as long as the context lasts.
	SetIdle(d time.Duration)
	// SetReadDeadline sets a fixed end for reads in its place; zero: none any more.
	SetReadDeadline(t time.Time) error
	// CloseWrite tells the other side that nothing more comes: it reads io.EOF behind
	// what was written.
	CloseWrite() error
	// Close closes both directions; what was written is still delivered.
	Close() error
	// Reset ends the stream at both ends at once, dropping what is under way.
	Reset() error
}

// Handler serves a stream that another node opened. The context ends with the data
// plane, and the stream with either.
type Handler = func(ctx context.Context, from identity.NodeID, s Stream)

// Host is a node's end of a data plane. It is safe for concurrent use.
type Host interface {
	// ID is this node.
	ID() identity.NodeID
	// Handle serves a protocol, each stream in a goroutine of its own.
	Handle(protocol string, handle Handler)
	// Open opens a stream to a member. The context bounds the opening and lives on in
	// the stream: when it ends the stream is reset.
	Open(ctx context.Context, to identity.NodeID, protocol string) (Stream, error)
	// OpenBulk is Open for a stream on which the other side will send much.
	OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (Stream, error)
	// StreamsEach is how many streams of one protocol this node may keep open to each
	// other one, if it does so to all. One that is opened beyond that, to a few, may be
	// refused, or end at any time: with an error whose Full() is true.
	StreamsEach() int
	// Connected reports whether the node was reached, and not lost since.
	Connected(id identity.NodeID) bool
	// Responds asks for a sign of life, which a node gives however busy it is.
	Responds(ctx context.Context, id identity.NodeID) bool
	// Filled tells what was measured of a node's sending: bytes a second times the
	// round trip.
	Filled(to identity.NodeID, bytes int64)
	// DialAfresh tries the whole way to a member, whatever is open to it.
	DialAfresh(ctx context.Context, to identity.NodeID) error
}

// Concrete is a Host whose streams have a type of their own (*peer.Host).
type Concrete[S Stream] interface {
	ID() identity.NodeID
	Handle(protocol string, handle func(ctx context.Context, from identity.NodeID, s S))
	Open(ctx context.Context, to identity.NodeID, protocol string) (S, error)
	OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (S, error)
	StreamsEach() int
	Connected(id identity.NodeID) bool
	Responds(ctx context.Context, id identity.NodeID) bool
	Filled(to identity.NodeID, bytes int64)
	DialAfresh(ctx context.Context, to identity.NodeID) error
}

// Of makes a Host of a concrete one. The streams are passed on as they are: it
// costs nothing for what goes over them.
func Of[S Stream](h Concrete[S]) Host { return host[S]{h} }

type host[S Stream] struct{ Concrete[S] }

func (h host[S]) Handle(protocol string, handle Handler) {
	h.Concrete.Handle(protocol, func(ctx context.Context, from identity.NodeID, s S) { handle(ctx, from, s) })
}

func (h host[S]) Open(ctx context.Context, to identity.NodeID, protocol string) (Stream, error) {
	return opened(h.Concrete.Open(ctx, to, protocol))
}

func (h host[S]) OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (Stream, error) {
	return opened(h.Concrete.OpenBulk(ctx, to, protocol))
}

// opened keeps a nil of a concrete type from being a stream.
func opened[S Stream](s S, err error) (Stream, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

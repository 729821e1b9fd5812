package peer

import (
	"context"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	msmux "github.com/multiformats/go-multistream"
)

// chosen is a stream for which a protocol was, or is being, agreed on.
type chosen struct {
	network.MuxedStream
	rw    msmux.LazyConn // nil: it was
	ended func()         // called once at the end; may be nil
	once  sync.Once
}

// negotiate agrees on the protocol of a stream that this node opened: with the
// first bytes if the other side is known to speak it, else before, which takes a
// round trip. It resets the stream when it fails. set charges the stream to the
// protocol's limits.
func (h *Host) negotiate(ctx context.Context, id corepeer.ID, ms network.MuxedStream, set func(protocol.ID) error, proto string) (*chosen, error) {
	s := &chosen{MuxedStream: ms}
	err := set(protocol.ID(proto))
	if err == nil {
		if known, _ := h.h.Peerstore().SupportsProtocols(id, protocol.ID(proto)); len(known) > 0 {
			s.rw = msmux.NewMSSelect(ms, protocol.ID(proto))
			return s, nil
		}
		stop := context.AfterFunc(ctx, func() { _ = ms.Reset() })
		err = msmux.SelectProtoOrFail(protocol.ID(proto), ms)
		if !stop() && ctx.Err() != nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = ms.Reset()
		return nil, err
	}
	return s, nil
}

func (s *chosen) Read(p []byte) (int, error) {
	if s.rw != nil {
		return s.rw.Read(p)
	}
	return s.MuxedStream.Read(p)
}

func (s *chosen) Write(p []byte) (int, error) {
	if s.rw != nil {
		return s.rw.Write(p)
	}
	return s.MuxedStream.Write(p)
}

// CloseWrite sends the choice even if nothing else was sent.
func (s *chosen) CloseWrite() error {
	if s.rw != nil {
		_ = s.rw.Flush() // the error shows at the close
	}
	return s.MuxedStream.CloseWrite()
}

func (s *chosen) Close() error {
	defer s.end()
	if s.rw != nil {
		return s.rw.Close()
	}
	return s.MuxedStream.Close()
}

func (s *chosen) Reset() error {
	defer s.end()
	return s.MuxedStream.Reset()
}

func (s *chosen) end() {
	if s.ended != nil {
		s.once.Do(s.ended)
	}
}

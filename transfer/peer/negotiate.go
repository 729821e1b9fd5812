package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	msmux "github.com/multiformats/go-multistream"
)

// chosen is a stream for which a protocol was, or is being, agreed on.
//
// With a protocol that the other side is known to speak, the choice goes with the first
// bytes that are written, and the answer is what reads find first. go-multistream has a
// lazy connection for the same, but it takes its first error for the handshake's end: a
// read that ended because its deadline passed before the other side said anything made
// the stream useless, and each read after it return at once.
type chosen struct {
	network.MuxedStream
	proto string

	writing sync.Mutex
	choice  []byte // what is not sent of it yet

	answer []byte // what has to come before anything else; only who reads has it
	failed error  // another answer came

	ended func() // called once at the end; may be nil
	once  sync.Once
}

// said is how multistream-select says a protocol, under its own name: both sides say the
// same. It is of the specification at https://github.com/multiformats/multistream-select.
func said(proto string) []byte {
	var out []byte
	for _, token := range []string{msmux.ProtocolID, proto} {
		out = binary.AppendUvarint(out, uint64(len(token)+1))
		out = append(append(out, token...), '\n')
	}
	return out
}

// negotiate agrees on the protocol of a stream that this node opened: with the
// first bytes if the other side is known to speak it, else before, which takes a
// round trip. It resets the stream when it fails. set charges the stream to the
// protocol's limits.
func (h *Host) negotiate(ctx context.Context, id corepeer.ID, ms network.MuxedStream, set func(protocol.ID) error, proto string) (*chosen, error) {
	s := &chosen{MuxedStream: ms, proto: proto}
	err := set(protocol.ID(proto))
	if err == nil {
		if known, _ := h.h.Peerstore().SupportsProtocols(id, protocol.ID(proto)); len(known) > 0 {
			s.choice, s.answer = said(proto), said(proto)
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

// Read goes on with the answer where the read before it ended, whyever it did.
func (s *chosen) Read(p []byte) (int, error) {
	if err := s.readAnswer(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	return s.MuxedStream.Read(p)
}

func (s *chosen) readAnswer() error {
	if len(s.answer) == 0 || s.failed != nil {
		return s.failed
	}
	if err := s.flush(); err != nil {
		return err
	}
	came := make([]byte, len(s.answer))
	for len(s.answer) > 0 {
		n, err := s.MuxedStream.Read(came[:len(s.answer)])
		if !bytes.Equal(came[:n], s.answer[:n]) {
			s.failed = msmux.ErrNotSupported[protocol.ID]{Protos: []protocol.ID{protocol.ID(s.proto)}}
			return s.failed
		}
		s.answer = s.answer[n:]
		if err != nil && len(s.answer) > 0 {
			return err
		}
	}
	s.answer = nil
	return nil
}

func (s *chosen) Write(p []byte) (int, error) {
	s.writing.Lock()
	choice := s.choice
	if len(choice) == 0 {
		s.writing.Unlock()
		return s.MuxedStream.Write(p)
	}
	defer s.writing.Unlock()
	n, err := s.MuxedStream.Write(append(bytes.Clone(choice), p...))
	s.choice = choice[min(n, len(choice)):]
	return max(n-len(choice), 0), err
}

// flush sends the choice, unless a write does.
func (s *chosen) flush() error {
	if !s.writing.TryLock() {
		return nil
	}
	defer s.writing.Unlock()
	if len(s.choice) == 0 {
		return nil
	}
	n, err := s.MuxedStream.Write(s.choice)
	s.choice = s.choice[n:]
	return err
}

// CloseWrite sends the choice even if nothing else was sent.
func (s *chosen) CloseWrite() error {
	_ = s.flush() // the error shows at the close
	return s.MuxedStream.CloseWrite()
}

func (s *chosen) Close() error {
	defer s.end()
	_ = s.flush()
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

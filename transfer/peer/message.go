package peer

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// A message on a stream is its length as four bytes, big endian, and a protobuf
// message.

// TooLargeError is a message beyond the reader's or writer's bound. The stream
// is of no more use.
type TooLargeError struct {
	// Size is what the frame says, Max the bound, in bytes.
	Size, Max int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("message of %d bytes is larger than the %d that are allowed", e.Size, e.Max)
}

// WriteMsg writes one message of at most max bytes in a single Write.
func WriteMsg(w io.Writer, m proto.Message, max int) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4, 256), m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	n := len(b) - 4
	if n > max {
		return &TooLargeError{Size: n, Max: max}
	}
	binary.BigEndian.PutUint32(b, uint32(n))
	_, err = w.Write(b)
	return err
}

// ReadMsg reads one message of at most max bytes. At the clean end of the stream
// it returns io.EOF; inside a message io.ErrUnexpectedEOF.
func ReadMsg(r io.Reader, m proto.Message, max int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(max) {
		return &TooLargeError{Size: int(n), Max: max}
	}
	// Grow with what arrives: a length alone must not make us allocate.
	b, err := readN(r, int(n))
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// readN reads exactly n bytes, allocating at most twice what came.
func readN(r io.Reader, n int) ([]byte, error) {
	const first = 64 << 10
	b := make([]byte, min(n, first))
	for have := 0; ; {
		got, err := io.ReadFull(r, b[have:])
		have += got
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if have == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*len(b)))
		copy(grown, b)
		b = grown
	}
}

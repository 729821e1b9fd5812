package blobs

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"

	"github.com/portolan/portolan/node/store/units"
)

// A checkpoint file says how much of an upload is durable, and the hash states
// up to there, so that a resume reads less than one unit again. It is only ever
// appended to, and an entry is written after the data it speaks of was synced:
// whatever entry survives a crash is true. Raw states are kept, not Go's
// marshaled form, so that a newer build can go on with an older one's upload.
//
//	file:  version byte 1, entries
//	entry: offset u64 | number of new states u32 | states, 32 bytes each | crc32c u32 of all before
const (
	checkpointVersion = 1
	entryHead         = 8 + 4
	entryTail         = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendEntry adds the entry for offset with the states that are new since the
// last one.
func appendEntry(b []byte, offset int64, states []units.State) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = binary.BigEndian.AppendUint32(b, uint32(len(states)))
	for i := range states {
		b = append(b, states[i][:]...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// readCheckpoint gives the last durable offset, the states up to it, and the
// length of the file's sound part. A torn end is what a crash leaves: it is
// ignored.
func readCheckpoint(path string) (offset int64, states []units.State, sound int64, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && (len(b) == 0 || b[0] != checkpointVersion)) {
		return 0, nil, 0, nil
	}
	if err != nil {
		return 0, nil, 0, err
	}
	offset, states, n := parseEntries(b[1:])
	return offset, states, 1 + int64(n), nil
}

func parseEntries(b []byte) (offset int64, states []units.State, sound int) {
	for len(b)-sound >= entryHead+entryTail {
		e := b[sound:]
		off := binary.BigEndian.Uint64(e)
		n := int64(binary.BigEndian.Uint32(e[8:]))
		length := entryHead + n*units.StateSize
		if length+entryTail > int64(len(e)) ||
			crc32.Checksum(e[:length], castagnoli) != binary.BigEndian.Uint32(e[length:]) {
			break
		}
		if off > uint64(units.MaxSize) || int64(off) < offset || (int64(len(states))+n)*units.Unit > int64(off) {
			break
		}
		for i := range n {
			states = append(states, units.State(e[entryHead+i*units.StateSize:]))
		}
		offset = int64(off)
		sound += int(length) + entryTail
	}
	return offset, states, sound
}

package blobs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// A checkpoint file says by which algorithm an upload is hashed, how much of it
// is durable, and the hash states up to there, so that a resume reads less than
// one unit again. It is only ever appended to, and an entry is written after the
// data it speaks of was synced: whatever entry survives a crash is true. Raw
// states are kept, not Go's marshaled form, so that a newer build can go on with
// an older one's upload.
//
//	file:  form byte, entries
//	form:  1 sha256, 2 sha512; further ones are appended, numbers never change
//	entry: offset u64 | number of new states u32 | states, 32 or 64 bytes each | crc32c u32 of all before
const (
	formSHA256 = 1
	formSHA512 = 2
	entryHead  = 8 + 4
	entryTail  = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkpointForm is the first byte of the checkpoint file of an upload that is
// hashed by alg.
func checkpointForm(alg digest.Algorithm) byte {
	if alg == digest.SHA512 {
		return formSHA512
	}
	return formSHA256
}

// formAlgorithm is the other way round; a form of a newer version is not ok.
func formAlgorithm(form byte) (alg digest.Algorithm, ok bool) {
	switch form {
	case formSHA256:
		return digest.SHA256, true
	case formSHA512:
		return digest.SHA512, true
	default:
		return "", false
	}
}

// appendEntry adds the entry for offset with the states of alg that are new
// since the last one.
func appendEntry(b []byte, alg digest.Algorithm, offset int64, states []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = binary.BigEndian.AppendUint32(b, uint32(len(states)/units.StateSize(alg)))
	b = append(b, states...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// checkpoint is what a file says.
type checkpoint struct {
	alg    digest.Algorithm
	offset int64  // the last durable one
	states []byte // up to it
	sound  int64  // length of the file's sound part; 0: nothing of it is
}

// readCheckpoint reads a file. A torn end is what a crash leaves: it is ignored.
// Without a file, or with one of no use, the upload begins anew.
func readCheckpoint(path string) (checkpoint, error) {
	anew := checkpoint{alg: digest.Canonical}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return anew, nil
	}
	if err != nil {
		return anew, err
	}
	if len(b) == 0 {
		return anew, nil
	}
	alg, ok := formAlgorithm(b[0])
	if !ok {
		return anew, nil
	}
	c := checkpoint{alg: alg}
	var n int
	c.offset, c.states, n = parseEntries(alg, b[1:])
	c.sound = 1 + int64(n)
	return c, nil
}

func parseEntries(alg digest.Algorithm, b []byte) (offset int64, states []byte, sound int) {
	size := int64(units.StateSize(alg))
	for len(b)-sound >= entryHead+entryTail {
		e := b[sound:]
		off := binary.BigEndian.Uint64(e)
		n := int64(binary.BigEndian.Uint32(e[8:]))
		length := entryHead + n*size
		if length+entryTail > int64(len(e)) ||
			crc32.Checksum(e[:length], castagnoli) != binary.BigEndian.Uint32(e[length:]) {
			break
		}
		if off > uint64(units.MaxSize) || int64(off) < offset || (int64(len(states))/size+n)*units.Unit > int64(off) {
			break
		}
		states = append(states, e[entryHead:length]...)
		offset = int64(off)
		sound += int(length) + entryTail
	}
	return offset, states, sound
}

// checkpoint makes the first size bytes durable and notes it. One call at a
// time.
func (u *Upload) checkpoint(size int64, states []byte) error {
	if size == u.durable.Load() {
		return nil
	}
	f, err := u.open()
	if err != nil {
		return err
	}
	// Promise: the offset that we answer is on the disk. Before the entry, which
	// must never claim more than there is.
	if err := u.s.sync(f); err != nil {
		// The system may have dropped what it could not write and call it clean:
		// a second sync that succeeds would prove nothing.
		u.lost = true
		return fmt.Errorf("upload %s: %w", u.id, errors.Join(mapError(err), errUnsyncedUpload))
	}
	if err := u.note(appendEntry(nil, u.hasher.Algorithm(), size, states[u.synced:])); err != nil {
		return err
	}
	u.synced = len(states)
	// An entry is not always synced: if a power cut takes it, the offset after the
	// restart is an earlier one, and still true.
	if size-u.kept >= units.Unit {
		if err := u.keep(); err != nil {
			u.lost = true
			return fmt.Errorf("upload %s: %w", u.id, errors.Join(mapError(err), errUnsyncedUpload))
		}
		u.kept = size
	}
	u.durable.Store(size)
	return nil
}

// keep makes the entries durable. Promise: a power cut takes the session back by
// less than one unit.
func (u *Upload) keep() error {
	if err := u.s.sync(u.ckpt); err != nil {
		return err
	}
	if u.kept > 0 {
		return nil
	}
	// The first time its names as well.
	return syncDir(u.s.path("uploads"))
}

// note adds an entry to the checkpoint file, and begins the file with its form.
func (u *Upload) note(entry []byte) error {
	if u.ckpt == nil {
		c, err := os.OpenFile(u.path(extCkpt), os.O_WRONLY|os.O_CREATE|os.O_APPEND, filePerm)
		if err != nil {
			return fmt.Errorf("upload %s: %w", u.id, mapError(err))
		}
		u.ckpt = c
	}
	st, err := u.ckpt.Stat()
	if err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	if st.Size() == 0 {
		entry = append([]byte{checkpointForm(u.hasher.Algorithm())}, entry...)
	}
	if _, err := u.ckpt.Write(entry); err != nil {
		err = fmt.Errorf("upload %s: %w", u.id, mapError(err))
		// Half an entry would hide from a restart those that come behind it.
		if terr := u.ckpt.Truncate(st.Size()); terr != nil {
			u.lost = true
			err = errors.Join(err, terr)
		}
		return err
	}
	return nil
}

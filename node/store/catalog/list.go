package catalog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file is the sender's half of a full list (rule 6): what a receiver gets
// that may have missed deletes whose tombstones are purged here.

const (
	// maxListMemory bounds the list that is kept in memory while it is sent; a longer
	// one goes to a file without a name, so that no snapshot is held while a slow
	// peer reads.
	maxListMemory = 4 << 20
)

// ErrRowsLost says that the entries of a project do not add up to their stored
// sum: this store lost rows, and must not tell others what it does not have. See
// DropVector.
var ErrRowsLost = errors.New("the catalogue lost rows of the project")

// list is a full list that was made from one snapshot and waits to be sent.
type list struct {
	dir       string // for the file
	partBytes int
	vector    Vector // of that snapshot
	mem       bytes.Buffer
	file      *os.File // what does not fit into mem; nil: all does
	out       *bufio.Writer
}

func (l *list) close() {
	if l.file != nil {
		_ = l.file.Close() // it has no name, and nobody relies on it
	}
}

// makeList writes down all keys of a project and their dots as they are now. It
// refuses to when they do not add up to the stored sum. A part is about partBytes.
func (c *Catalog) makeList(ctx context.Context, pid identity.ProjectID, partBytes int) (l *list, err error) {
	// One at a time: each has a snapshot, and may have a file.
	select {
	case c.listing <- struct{}{}:
		defer func() { <-c.listing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := c.space(ToGrow); err != nil {
		return nil, err
	}
	l = &list{dir: c.dir, partBytes: partBytes}
	err = c.view(func(r reader) error { return l.fill(ctx, r, pid, c.sound) })
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *list) fill(ctx context.Context, r reader, pid identity.ProjectID, sound func(want, sum Check) bool) error {
	stored, err := r.sums(pid)
	if err != nil {
		return err
	}
	if l.vector, err = r.vector(tabVector, pid); err != nil {
		return err
	}
	part := &rowpb.List{}
	for _, inc := range l.vector.incs() {
		part.Vector = append(part.Vector, &rowpb.Seen{Inc: uint64(inc), Seq: l.vector[inc]})
	}
	var (
		counted Check
		last    []byte
		size    int
	)
	err = r.scan(prefixPID(tabEntry, pid), nil, true, func(key, value []byte) (bool, error) {
		if counted.Count%1024 == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return false, damaged(key)
		}
		e, err := decodeEntry(k, value)
		if err != nil {
			return false, err
		}
		suffix := key[17:]
		hash := e.hash(suffix)
		counted.add(hash, 1)
		row := &rowpb.Listed{Hash: hash[:]}
		if len(part.Rows) > 0 {
			row.Shared = uint32(sharedPrefix(last, suffix))
		}
		row.Rest = suffix[row.Shared:]
		for _, s := range e.sibs {
			row.Dots = append(row.Dots, &rowpb.Seen{Inc: uint64(s.dot.Inc), Seq: s.dot.Seq})
		}
		part.Rows = append(part.Rows, row)
		last = suffix
		if size += proto.Size(row) + 4; size < l.partBytes {
			return true, nil
		}
		if err := l.write(part); err != nil {
			return false, err
		}
		part, size = &rowpb.List{After: last}, 0
		return true, nil
	})
	if err != nil {
		return err
	}
	if !sound(stored.all, counted) {
		return fmt.Errorf("%w %s: %d entries, %d by its sum", ErrRowsLost, pid, counted.Count, stored.all.Count)
	}
	part.Last = true
	part.Check = &rowpb.Check{Count: stored.all.Count, Xor: stored.all.Xor[:]}
	if err := l.write(part); err != nil {
		return err
	}
	if l.out != nil {
		return l.out.Flush()
	}
	return nil
}

func sharedPrefix(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// write keeps one part: its length, and the page that it travels as.
func (l *list) write(part *rowpb.List) error {
	page, err := deterministic.Marshal(&rowpb.Page{Version: pageVersion, List: part})
	if err != nil {
		return err
	}
	framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(page))), page...)
	if l.file == nil && l.mem.Len()+len(framed) <= maxListMemory {
		l.mem.Write(framed)
		return nil
	}
	if l.file == nil {
		if l.file, err = os.CreateTemp(l.dir, "list-*.tmp"); err != nil {
			return fmt.Errorf("keep a list of the catalogue: %w", err)
		}
		// Without a name nothing of it is left, whatever happens to this process.
		if err := os.Remove(l.file.Name()); err != nil {
			return fmt.Errorf("keep a list of the catalogue: %w", err)
		}
		l.out = bufio.NewWriterSize(l.file, 256<<10)
	}
	_, err = l.out.Write(framed)
	return err
}

// send gives the parts in order.
func (l *list) send(ctx context.Context, fn func(Page) error) error {
	var from io.Reader = &l.mem
	if l.file != nil {
		if _, err := l.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		from = io.MultiReader(&l.mem, bufio.NewReaderSize(l.file, 256<<10))
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var head [4]byte
		if _, err := io.ReadFull(from, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		page := make(Page, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(from, page); err != nil {
			return err
		}
		if err := fn(page); err != nil {
			return err
		}
	}
}

package v2

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/portolan/portolan/node/store"
)

// mending reads a blob of this store. Where that turns out to be damaged, it goes
// on from those that hold it: the store gives no byte that it has not checked, so
// what was read is right, and the client need not notice.
type mending struct {
	h    *Handler
	ctx  context.Context
	want Want

	now  io.ReadSeeker
	mesh Blob // what now is, once the store's copy is of no use
	off  int64
}

// Read implements io.Reader.
func (m *mending) Read(p []byte) (int, error) {
	n, err := m.now.Read(p)
	m.off += int64(n)
	if n > 0 || m.mesh != nil || !errors.Is(err, store.ErrCorrupt) {
		return n, err
	}
	b, oerr := m.h.open(m.ctx, m.want)
	if oerr != nil {
		return 0, errors.Join(err, oerr)
	}
	m.mesh, m.now = b, b
	if b.Size() != m.want.Size && m.want.Size > 0 {
		return 0, err
	}
	if _, serr := b.Seek(m.off, io.SeekStart); serr != nil {
		return 0, errors.Join(err, serr)
	}
	m.h.log.Warn("a damaged blob is served from another site", slog.String("digest", m.want.Digest.String()), slog.Int64("from", m.off))
	n, err = b.Read(p)
	m.off += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (m *mending) Seek(off int64, whence int) (int64, error) {
	at, err := m.now.Seek(off, whence)
	if err == nil {
		m.off = at
	}
	return at, err
}

// Close lets go of what came from other sites; the store's copy is its owner's.
func (m *mending) Close() {
	if m.mesh != nil {
		_ = m.mesh.Close()
	}
}

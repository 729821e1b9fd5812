package blobs

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// idleSession is how long a session that nobody goes on with is safe. One without
// bytes ends then: clients send the first ones within seconds. One with bytes
// gives way then to a new one of its owner's, if he has as many as he may.
const idleSession = time.Hour

// Owner stands for whoever begins uploads; each has a share of the sessions, so
// that nobody can take them all. NodeOwner, the zero value, is this node itself,
// which has no bound but the store's.
type Owner uint32

// NodeOwner is who makes the uploads that no client asked for.
const NodeOwner Owner = 0

// OwnerOf gives the owner for a name. That two of many names are one owner is
// harmless: they share.
func OwnerOf(name string) Owner {
	sum := sha256.Sum256([]byte(name))
	return max(Owner(binary.BigEndian.Uint32(sum[:])), 1)
}

// An upload's id is a UUID of version 8 (RFC 9562, the form for content of one's
// own): 90 random bits, and the owner's 32. So the shares are known from a listing
// of names after a restart.
func newID(owner Owner) string {
	var u uuid.UUID
	_, _ = rand.Read(u[:12]) // never fails (Go 1.24)
	u[6] = u[6]&0x0f | 8<<4
	u[8] = u[8]&0x3f | 0x80
	binary.BigEndian.PutUint32(u[12:], uint32(owner))
	return u.String()
}

// parseID reads the canonical form alone: the id becomes a file name.
func parseID(id string) (Owner, error) {
	u, err := uuid.Parse(id)
	if err != nil || u.String() != id {
		return 0, fmt.Errorf("upload %.40q: %w", id, ErrNotFound)
	}
	return Owner(binary.BigEndian.Uint32(u[12:])), nil
}

// CreateUpload begins an upload of the node's own; see CreateUploadFor.
func (s *Store) CreateUpload() (*Upload, error) { return s.CreateUploadFor(NodeOwner) }

// CreateUploadFor begins an upload. It writes nothing: an upload that begins and
// ends in one request needs no file, if it is small. ErrTooManyUploads and
// ErrUploadShare say that the store or the owner has as many as it takes.
func (s *Store) CreateUploadFor(owner Owner) (*Upload, error) {
	if err := s.cfg.Space(0); err != nil {
		return nil, fmt.Errorf("begin an upload: %w", err)
	}
	u := &Upload{s: s, id: newID(owner)}
	err := s.enter(u, owner)
	if errors.Is(err, ErrUploadShare) && s.giveWay(owner) {
		err = s.enter(u, owner)
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

// Keep makes the session of a new upload outlive this process, before its id is
// given to a client. Not synced: the file alone carries it over a kill, and a
// power cut may take a session that has no bytes yet. Nobody else knows the
// upload yet.
func (u *Upload) Keep() error {
	_, err := u.open()
	u.close()
	if err != nil {
		return errors.Join(fmt.Errorf("begin an upload: %w", mapError(err)), u.Discard())
	}
	return nil
}

// enter counts a new session and keeps it, if there is room.
func (s *Store) enter(u *Upload, owner Owner) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.nUploads >= s.cfg.MaxUploads:
		return ErrTooManyUploads
	case owner != NodeOwner && s.cfg.MaxPerOwner > 0 && s.shares[owner] >= s.cfg.MaxPerOwner:
		return ErrUploadShare
	}
	s.count(owner, 1)
	u.touch()
	s.uploads[u.id] = u
	return nil
}

// count keeps the number of open sessions; with mu held.
func (s *Store) count(owner Owner, n int) {
	s.nUploads += n
	if s.shares[owner] += n; s.shares[owner] <= 0 {
		delete(s.shares, owner)
	}
}

// giveWay ends the owner's session that was idle for longest, if that is long
// enough: what a crashed client left open does not shut its owner out. It looks at
// no more than the owner's sessions, and for those from before the start at their
// files' times.
func (s *Store) giveWay(owner Owner) bool {
	type session struct {
		id      string
		touched int64
	}
	var his []session
	idleSince := s.cfg.Now().Add(-idleSession).UnixNano()
	consider := func(id string, touched int64) {
		if touched < idleSince {
			his = append(his, session{id, touched})
		}
	}
	end := fmt.Sprintf("%08x", uint32(owner)) // of each id of his
	s.mu.Lock()
	for id, u := range s.uploads {
		if strings.HasSuffix(id, end) {
			consider(id, u.touched.Load())
		}
	}
	s.earlier[owner] = slices.DeleteFunc(s.earlier[owner], func(id string) bool { return s.uploads[id] != nil })
	earlier := slices.Clone(s.earlier[owner])
	s.mu.Unlock()
	ended := make(map[string]bool)
	for _, id := range earlier {
		switch st, err := os.Stat(s.path("uploads", id+extData)); {
		case err == nil:
			consider(id, st.ModTime().UnixNano())
		case errors.Is(err, fs.ErrNotExist):
			ended[id] = true
		}
	}
	s.forgetEarlier(owner, ended)
	slices.SortFunc(his, func(a, b session) int { return cmp.Compare(a.touched, b.touched) })
	for _, one := range his {
		// Not if it is in use after all, or if its commit was cut short.
		if gone, err := s.expire(one.id, idleSession, nil); gone && err == nil {
			return true
		}
	}
	return false
}

// forgetEarlier drops sessions of an owner from before the start that have ended.
func (s *Store) forgetEarlier(owner Owner, ended map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.earlier[owner] = slices.DeleteFunc(s.earlier[owner], func(id string) bool { return ended[id] })
	if len(s.earlier[owner]) == 0 {
		delete(s.earlier, owner)
	}
}

// leave forgets a session that has ended.
func (s *Store) leave(id string) {
	owner, _ := parseID(id) // its form was checked when it came in
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, id)
	s.count(owner, -1)
}

package sync

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

const (
	// proofSpan is how much one question is about: a second of reading and hashing,
	// so that an answer comes long before answerWithin.
	proofSpan = 64 << 20
	// proofsAtOnce bounds those that this node hashes for others at a time, one a
	// peer: half of two cores at most, and no peer keeps others out.
	proofsAtOnce = 2
	proofContext = "portolan possession 1"
	nonceBytes   = 32
	// proveRetry is when a client may find a site that can show a blob.
	proveRetry = 5 * time.Second
	// provesEach bounds the proofs that this node asks one peer for at a time, so that
	// other questions to it have room, and provesAtOnce those of all: each reads and
	// hashes here as well.
	provesEach   = 2
	provesAtOnce = 8
)

// errNotShown: a node does not show content, or can't.
var errNotShown = errors.New("it has no such content of the project")

// provers bounds the proofs that this node makes for others, or has others make.
type provers struct {
	all   chan struct{}
	apart int // at a time with one peer

	mu   sync.Mutex
	each map[identity.NodeID]chan struct{}
}

func newProvers(all, each int) *provers {
	return &provers{all: make(chan struct{}, all), apart: each, each: map[identity.NodeID]chan struct{}{}}
}

// enter waits for a peer's turn.
func (p *provers) enter(ctx context.Context, from identity.NodeID) (leave func(), err error) {
	p.mu.Lock()
	own := p.each[from]
	if own == nil {
		own = make(chan struct{}, p.apart) // for each member there ever was
		p.each[from] = own
	}
	p.mu.Unlock()
	for _, c := range []chan struct{}{own, p.all} {
		select {
		case c <- struct{}{}:
		case <-ctx.Done():
			if c == p.all {
				<-own
			}
			return nil, ctx.Err()
		}
	}
	return func() { <-p.all; <-own }, nil
}

// Prove makes content that is here for another project the given one's: a site of
// the project must show that it has it, which costs 32 bytes in place of the blob.
// It is durable when it returns. The error is store.ErrNotFound if no site that
// answers has it, *store.Unreachable if some did not answer.
//
// A project that names a digest is not enough: any member of it can write an
// entry, and would read what it only knows the digest of.
func (s *Sync) Prove(ctx context.Context, d digest.Digest, pid identity.ProjectID) error {
	row, err := s.cat.Blob(d)
	if err != nil {
		return fmt.Errorf("prove blob %s: %w", d, err)
	}
	view := s.cfg.State.View()
	found, silent := s.whoHas(ctx, view, d, pid)
	for _, node := range found {
		err := s.shown(ctx, node, d, row.Size, pid)
		if err == nil {
			return s.cat.Prove(ctx, d, pid)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, _ := view.Node(node)
		switch {
		case errors.Is(err, errFalseProof):
			s.metrics.falseProofs.WithLabelValues(node.String()).Inc()
			s.log.Warn("a site says that it has content of a project, and can't show it: it gets nothing by that", "node", node, "site", n.Site, "project", pid, "digest", d, "error", err)
		case errors.Is(err, errNotShown):
			s.log.Debug("a site does not show content that it said it has", "node", node, "site", n.Site, "digest", d)
		default:
			silent = append(silent, node)
		}
	}
	if len(silent) == 0 {
		return fmt.Errorf("blob %s is here for another project, and no site of this one shows that it has it: %w", d, store.ErrNotFound)
	}
	u := &store.Unreachable{RetryAfter: proveRetry}
	for _, node := range silent {
		if n, ok := view.Node(node); ok && !slices.Contains(u.Sites, n.Site) {
			u.Sites = append(u.Sites, n.Site)
		}
	}
	slices.Sort(u.Sites)
	return u
}

// errFalseProof: what a node showed is not what is here.
var errFalseProof = errors.New("what it shows is not the blob")

// shown asks one node for all of a blob, span by span.
func (s *Sync) shown(ctx context.Context, node identity.NodeID, d digest.Digest, size int64, pid identity.ProjectID) error {
	leave, err := s.proving.enter(ctx, node)
	if err != nil {
		return err
	}
	defer leave()
	b, err := s.cfg.Store.Open(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	for off := int64(0); ; off += proofSpan {
		p := proof{asker: s.cfg.Self, prover: node, pid: pid, digest: d, offset: off, length: min(proofSpan, size-off)}
		p.nonce = make([]byte, nonceBytes)
		_, _ = rand.Read(p.nonce) // never fails
		a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Prove{Prove: &ProveRequest{
			Nonce: p.nonce, Digest: d.String(), Offset: p.offset, Length: p.length,
		}}})
		if err != nil {
			return err
		}
		got := a.GetProve().GetMac()
		if len(got) == 0 {
			return errNotShown
		}
		// Only now: who shows nothing costs no reading here.
		want, err := p.mac(b)
		if err != nil {
			return err
		}
		if !hmac.Equal(got, want) {
			return errFalseProof
		}
		if off+proofSpan >= size {
			return nil
		}
	}
}

// proof is one span of a blob that one node shows to another.
type proof struct {
	nonce         []byte
	asker, prover identity.NodeID
	pid           identity.ProjectID
	digest        digest.Digest
	offset        int64
	length        int64
}

// mac is what shows a span: HMAC-SHA256 under the nonce, over who shows what to
// whom and the bytes. It begins with the nonce, so that nothing of it can be made
// before; and it names both nodes, so that one can't have another one answer.
func (p proof) mac(b io.ReadSeeker) ([]byte, error) {
	h := hmac.New(sha256.New, p.nonce)
	head := append([]byte(proofContext), 0)
	head = append(append(append(head, p.asker[:]...), p.prover[:]...), p.pid[:]...)
	head = append(append(head, p.digest...), 0)
	head = binary.BigEndian.AppendUint64(head, uint64(p.offset))
	_, _ = h.Write(binary.BigEndian.AppendUint64(head, uint64(p.length)))
	if _, err := b.Seek(p.offset, io.SeekStart); err != nil {
		return nil, err
	}
	n, err := io.CopyN(h, b, p.length)
	if err != nil {
		return nil, fmt.Errorf("read %d of %d bytes: %w", n, p.length, err)
	}
	return h.Sum(nil), nil
}

// replyProve shows content of a project to a site of it that may have it: as any
// who reads it here.
func (s *Sync) replyProve(ctx context.Context, view *state.View, pid identity.ProjectID, from identity.NodeID, q *ProveRequest) (*AskResponse, error) {
	if r := s.takes(view, pid, from); r != nil {
		return nil, refused(r)
	}
	d, err := units.ParseDigest(q.GetDigest())
	if err != nil {
		return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
	}
	if len(q.GetNonce()) != nonceBytes || q.GetOffset() < 0 || q.GetLength() < 0 || q.GetLength() > proofSpan {
		return nil, &refusedError{Refusal_CODE_INVALID, fmt.Sprintf("a proof of %d bytes at %d under a nonce of %d bytes", q.GetLength(), q.GetOffset(), len(q.GetNonce()))}
	}
	nothing := &AskResponse{Answer: &AskResponse_Prove{Prove: &ProveResponse{}}}
	h, err := s.blobHolding(pid, d)
	if err != nil || h == Absent {
		return nothing, err
	}
	// Who asked has given up by then.
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	leave, err := s.provers.enter(ctx, from)
	if err != nil {
		return nil, err
	}
	defer leave()
	b, err := s.cfg.Store.Open(ctx, d)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) || errors.Is(err, catalog.ErrNotFound) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	if q.GetOffset() > b.Size() || q.GetLength() > b.Size()-q.GetOffset() {
		return nothing, nil // of another size than is thought there
	}
	mac, err := proof{nonce: q.GetNonce(), asker: from, prover: s.cfg.Self, pid: pid, digest: d, offset: q.GetOffset(), length: q.GetLength()}.mac(b)
	if err != nil {
		return nil, fmt.Errorf("show blob %s: %w", d, err)
	}
	return &AskResponse{Answer: &AskResponse_Prove{Prove: &ProveResponse{Mac: mac}}}, nil
}

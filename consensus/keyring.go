package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

const (
	gossipKey = command.KeyKind_KEY_KIND_GOSSIP
	meshKey   = command.KeyKind_KEY_KIND_MESH

	// maxBoxesAtOnce keeps a command well under its limit: a box with its node's
	// id takes 120 bytes. The rest follows by further steps.
	maxBoxesAtOnce = 256
	// keptOpen is how many opened keys are remembered; the state has fewer.
	keptOpen = 32
)

type keyID struct {
	kind    command.KeyKind
	version uint32
}

// opened is a key with the box that it was in: another history of the mesh (see
// recover) may have another key of the same version.
type opened struct {
	key secrets.Key
	box string
}

// keyring is the mesh's keys as far as this node can open them.
type keyring struct {
	node *Node

	mu    sync.Mutex // leaf lock
	open  map[keyID]opened
	told  map[keyID]bool // that its box does not open
	inUse uint64         // revision of the gossip keys that gossip uses
}

func newKeyring(n *Node) *keyring {
	return &keyring{node: n, open: make(map[keyID]opened), told: make(map[keyID]bool)}
}

// get opens a version of a key; false if this node has no box of it.
func (k *keyring) get(view *state.View, kind command.KeyKind, version uint32) (secrets.Key, bool) {
	row, ok := view.Key(kind, version)
	if !ok {
		return secrets.Key{}, false
	}
	box, ok := row.Box(k.node.cfg.Identity.ID)
	if !ok {
		return secrets.Key{}, false
	}
	id := keyID{kind, version}
	k.mu.Lock()
	defer k.mu.Unlock()
	if o, ok := k.open[id]; ok && o.box == string(box) {
		return o.key, true
	}
	key, err := secrets.OpenBox(k.node.cfg.Identity, secrets.Label{Mesh: view.Mesh().ID, Kind: uint32(kind), Version: version}, box)
	if err != nil {
		if !k.told[id] {
			k.told[id] = true
			k.node.log.Error("this node cannot open its box of a key", "key", state.KeyName(kind), "version", version, "err", err)
		}
		return secrets.Key{}, false
	}
	if len(k.open) >= keptOpen {
		clear(k.open)
	}
	k.open[id] = opened{key, string(box)}
	return key, true
}

// box encrypts a key to a node.
func (k *keyring) box(view *state.View, to state.Node, kind command.KeyKind, version uint32, key secrets.Key) (*command.KeyBox, error) {
	l := secrets.Label{Mesh: view.Mesh().ID, Kind: uint32(kind), Version: version, Node: to.ID}
	b, err := secrets.Box(l, to.BoxKey, to.BoxSignature, key)
	if err != nil {
		return nil, err
	}
	return &command.KeyBox{NodeId: to.ID[:], Box: b}, nil
}

// forJoiner boxes all keys that this node can open, and the joiner may, to the
// joiner. What is missing follows by a step of its own: see rotation.
func (k *keyring) forJoiner(view *state.View, rec *command.Node) []*command.NodeKey {
	to, err := state.NodeOf(rec)
	if err != nil {
		return nil // the state refuses it, in words
	}
	var out []*command.NodeKey
	for _, kind := range []command.KeyKind{gossipKey, meshKey} {
		if !state.MayHold(to, kind) {
			continue
		}
		for _, row := range view.Keys(kind) {
			key, ok := k.get(view, kind, row.Version)
			if !ok {
				continue
			}
			b, err := k.box(view, to, kind, row.Version, key)
			if err != nil {
				return nil // its box key is not signed: refused as well
			}
			out = append(out, &command.NodeKey{Kind: kind, Version: row.Version, Box: b.GetBox()})
		}
	}
	return out
}

// newKeys makes the keys of a new mesh, boxed to this node.
func (n *Node) newKeys(meshID []byte) ([]*command.NodeKey, error) {
	self, err := state.NodeOf(n.cfg.Self)
	if err != nil {
		return nil, err
	}
	mesh, err := identity.MeshIDFromBytes(meshID)
	if err != nil {
		return nil, err
	}
	var out []*command.NodeKey
	for _, kind := range []command.KeyKind{gossipKey, meshKey} {
		if !state.MayHold(self, kind) {
			continue
		}
		l := secrets.Label{Mesh: mesh, Kind: uint32(kind), Version: 1, Node: self.ID}
		b, err := secrets.Box(l, self.BoxKey, self.BoxSignature, secrets.NewKey())
		if err != nil {
			return nil, err
		}
		out = append(out, &command.NodeKey{Kind: kind, Version: 1, Box: b})
	}
	return out, nil
}

// gossip gives the gossip keys, the one to encrypt with first, and their
// revision; false while this node cannot open that one.
func (k *keyring) gossip(view *state.View) (keys [][]byte, revision uint64, ok bool) {
	st := view.KeyState()
	for _, row := range view.Keys(gossipKey) {
		key, ok := k.get(view, gossipKey, row.Version)
		switch {
		case !ok:
		case row.Version == st.GossipPrimary:
			keys = slices.Insert(keys, 0, key[:])
		default:
			keys = append(keys, key[:])
		}
	}
	_, ok = k.get(view, gossipKey, st.GossipPrimary)
	return keys, st.GossipRevision, ok
}

// installed says which revision of the gossip keys is in use here.
func (k *keyring) installed() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.inUse
}

func (k *keyring) setInstalled(revision uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inUse = revision
}

// AwaitGossipKeys waits until this node can open the gossip keys, and gives
// them: the one to encrypt with first. On a restart they are there at once, cut
// off or not; a joiner has them from its join.
func (n *Node) AwaitGossipKeys(ctx context.Context) ([][]byte, error) {
	for {
		changed := n.state.Changed()
		if keys, _, ok := n.keys.gossip(n.state.View()); ok {
			return keys, nil
		}
		select {
		case <-changed:
		case <-n.lifetime.Done():
			return nil, errStopping
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// FollowGossipKeys calls install with the gossip keys, the one to encrypt with
// first, now and after each change, until ctx ends. The mesh goes on to the next
// step of a rotation when its members have returned from install.
func (n *Node) FollowGossipKeys(ctx context.Context, install func([][]byte) error) error {
	for {
		changed := n.state.Changed()
		view := n.state.View()
		if have := n.keys.installed(); have == 0 || have != view.KeyState().GossipRevision {
			if keys, revision, ok := n.keys.gossip(view); ok {
				if err := install(keys); err != nil {
					return fmt.Errorf("consensus: install the gossip keys: %w", err)
				}
				n.keys.setInstalled(revision)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// RotateKeys asks for new keys. It answers when that is committed; the nodes do
// the steps, whoever leads, see rotation. Removing a node asks by itself: its
// command does the same in the state.
func (n *Node) RotateKeys(ctx context.Context, actor string, gossip, mesh bool) error {
	_, err := n.Propose(ctx, actor, &command.KeysRotate{Gossip: gossip, Mesh: mesh})
	return err
}

// sealTries: a rotation may take the key away between sealing and the log, once.
const sealTries = 3

// SetSecret seals value for its place with the mesh key and keeps it in the
// state; nil forgets the secret. Values of up to 16 KiB, all in all.
func (n *Node) SetSecret(ctx context.Context, actor string, p secrets.Place, value []byte) error {
	if value == nil {
		_, err := n.Propose(ctx, actor, &command.SecretSet{Object: p.Object, Field: p.Field})
		return err
	}
	var err error
	for range sealTries {
		var sealed []byte
		if sealed, err = n.seal(n.state.View(), p, value); err != nil {
			return err
		}
		_, err = n.Propose(ctx, actor, &command.SecretSet{Object: p.Object, Field: p.Field, Sealed: sealed})
		if !errors.Is(err, &command.Error{Code: command.CodeConflict}) {
			break
		}
	}
	return err
}

// Secret opens a value that SetSecret kept; ErrSealed if this node cannot, nil
// if there is none.
func (n *Node) Secret(p secrets.Place) ([]byte, error) {
	view := n.state.View()
	s, ok := view.Secret(p)
	if !ok {
		return nil, nil
	}
	return n.unseal(view, s)
}

func (n *Node) seal(view *state.View, p secrets.Place, value []byte) ([]byte, error) {
	newest, ok := view.NewestKey(meshKey)
	if !ok {
		return nil, errNoMeshKey
	}
	key, ok := n.keys.get(view, meshKey, newest.Version)
	if !ok {
		return nil, errNoMeshKey
	}
	return secrets.Seal(key, newest.Version, p, value)
}

func (n *Node) unseal(view *state.View, s state.Secret) ([]byte, error) {
	return secrets.Open(func(version uint32) (secrets.Key, bool) { return n.keys.get(view, meshKey, version) }, s.Place, s.Sealed)
}

// errNoMeshKey: a witness never has it, a new node may not for a moment.
var errNoMeshKey = &command.Error{Code: command.CodeConflict, Message: "this node has not got the mesh key, by which secrets are sealed: ask another node, or again in a moment"}

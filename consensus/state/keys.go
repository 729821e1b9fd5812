package state

import (
	"bytes"
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/node/identity"
)

const (
	// MaxMeshKeys bounds the versions of the mesh key: the old ones wait for what
	// they sealed to be sealed anew.
	MaxMeshKeys = 8
	// maxBox bounds a box: a key of 32 bytes takes 80.
	maxBox = 256
	// maxRecipient bounds a recovery key's public half: age's has 62 characters.
	maxRecipient = 255

	maxSecrets     = 10_000   // in all: one for each upstream and webhook, and room
	maxSecretBytes = 16 << 10 // of one, sealed: certificates with their keys fit
	maxSecretName  = 128      // of an object or a field
)

// Key is one version of a key that the mesh shares. The key itself is only in
// its boxes.
type Key struct {
	Kind      command.KeyKind
	Version   uint32
	CreatedAt time.Time

	boxes map[identity.NodeID][]byte // never changed, only replaced
}

// Box gives the box for a node.
func (k Key) Box(id identity.NodeID) ([]byte, bool) { b, ok := k.boxes[id]; return b, ok }

// Boxes counts the nodes that can open the key.
func (k Key) Boxes() int { return len(k.boxes) }

// KeyState is how far the keys' lives are.
type KeyState struct {
	GossipPrimary  uint32 // the version that encrypts; the others only decrypt
	GossipRevision uint64 // goes up with every change of what gossip uses
	GossipDue      bool   // a new one was asked for, and is not there yet
	MeshDue        bool
	// Recovery is to whom backups are sealed, in age's form; empty: nobody yet.
	Recovery   string
	RecoveryAt time.Time
	RecoveryBy string // actor
}

// Secret is a value sealed with the mesh key.
type Secret struct {
	Place     secrets.Place
	Sealed    []byte
	KeyVer    uint32 // of the mesh key
	Version   uint64 // of this row: the raft index that set it, so that one which is forgotten and set again has another
	UpdatedAt time.Time
}

// Keys gives the versions of a key, oldest first.
func (v *View) Keys(kind command.KeyKind) []Key {
	var out []Key
	for _, k := range v.keys {
		if k.Kind == kind {
			out = append(out, k)
		}
	}
	return out
}

// Key finds a version of a key.
func (v *View) Key(kind command.KeyKind, version uint32) (Key, bool) {
	i, ok := v.findKey(kind, version)
	if !ok {
		return Key{}, false
	}
	return v.keys[i], true
}

// NewestKey gives the latest version of a key: for the mesh key, the one to seal
// with.
func (v *View) NewestKey(kind command.KeyKind) (Key, bool) {
	keys := v.Keys(kind)
	if len(keys) == 0 {
		return Key{}, false
	}
	return keys[len(keys)-1], true
}

// KeyState gives how far the keys' lives are.
func (v *View) KeyState() KeyState { return v.keyState }

// SameKeys reports whether another view of this state has the same members, keys
// and secrets, and the same keys due. It costs a few comparisons.
func (v *View) SameKeys(w *View) bool {
	return v.nodes == w.nodes && v.secrets == w.secrets && v.keyState == w.keyState &&
		len(v.keys) == len(w.keys) && (len(v.keys) == 0 || &v.keys[0] == &w.keys[0])
}

// MayHold reports whether a member is one that shall have a key of the kind:
// witnesses hold no content, and nothing that is sealed.
func MayHold(n Node, kind command.KeyKind) bool {
	return kind == command.KeyKind_KEY_KIND_GOSSIP || !n.Witness
}

// WithoutBox gives the members that shall have the key and cannot open it, in
// the order of their ids.
func (v *View) WithoutBox(k Key) []Node {
	var out []Node
	for n := range all(v.nodes, nil) {
		if _, ok := k.boxes[n.ID]; !ok && MayHold(n, k.Kind) {
			out = append(out, n)
		}
	}
	return out
}

// Secret finds a sealed value.
func (v *View) Secret(p secrets.Place) (Secret, bool) { return v.secrets.Get(placeKey(p)) }

// Secrets yields all sealed values, by object and field.
func (v *View) Secrets() iter.Seq[Secret] { return all(v.secrets, nil) }

func placeKey(p secrets.Place) []byte { return []byte(p.Object + "\x00" + p.Field) }

// SealedWith counts the secrets that a version of the mesh key has sealed.
func (v *View) SealedWith(version uint32) int {
	n := 0
	for s := range v.Secrets() {
		if s.KeyVer == version {
			n++
		}
	}
	return n
}

func (v *View) findKey(kind command.KeyKind, version uint32) (int, bool) {
	return slices.BinarySearchFunc(v.keys, Key{Kind: kind, Version: version}, compareKeys)
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Version, b.Version))
}

// putKey replaces or adds a version. Views share slices: it makes a new one.
func (v *View) putKey(k Key) {
	i, ok := v.findKey(k.Kind, k.Version)
	keys := slices.Clone(v.keys)
	if ok {
		keys[i] = k
	} else {
		keys = slices.Insert(keys, i, k)
	}
	v.keys = keys
}

func (v *View) dropKey(kind command.KeyKind, version uint32) {
	if i, ok := v.findKey(kind, version); ok {
		v.keys = slices.Delete(slices.Clone(v.keys), i, i+1)
	}
}

func checkKind(kind command.KeyKind) error {
	if kind != command.KeyKind_KEY_KIND_GOSSIP && kind != command.KeyKind_KEY_KIND_MESH {
		return refuse(command.CodeInvalid, "there is no key of kind %d", kind)
	}
	return nil
}

func (v *View) keysRotate(m *command.KeysRotate) (int64, error) {
	if !m.GetGossip() && !m.GetMesh() {
		return 0, refuse(command.CodeInvalid, "say which key shall be new: gossip, mesh or both")
	}
	v.keyState.GossipDue = v.keyState.GossipDue || m.GetGossip()
	v.keyState.MeshDue = v.keyState.MeshDue || m.GetMesh()
	return 0, nil
}

// discloseKeys takes note that a node that is no member any more knew the keys:
// its boxes go, and new keys are due. Whatever removes a node calls it.
func (v *View) discloseKeys(id identity.NodeID) {
	v.unbox(id, func(Key) bool { return true })
	v.keyState.GossipDue, v.keyState.MeshDue = true, true
}

// keysFollow looks after a member's boxes when its record changes.
func (v *View) keysFollow(old, now Node) {
	if old.BoxKey != now.BoxKey {
		v.unbox(now.ID, func(Key) bool { return true }) // it cannot open them any more; new ones are made
	}
	if now.Witness && !old.Witness {
		v.unbox(now.ID, func(k Key) bool { return !MayHold(now, k.Kind) })
		v.keyState.MeshDue = true
	}
}

func (v *View) unbox(id identity.NodeID, which func(Key) bool) {
	for _, k := range v.keys {
		if _, ok := k.boxes[id]; ok && which(k) {
			k.boxes = maps.Clone(k.boxes)
			delete(k.boxes, id)
			v.putKey(k)
		}
	}
}

// takeKeys takes the keys that are boxed to a node with the command that makes
// it a member. What does not fit is left out: a rotation may have come between.
func (v *View) takeKeys(id identity.NodeID, keys []*command.NodeKey) error {
	for _, nk := range keys {
		if err := checkKind(nk.GetKind()); err != nil {
			return err
		}
		k, ok := v.Key(nk.GetKind(), nk.GetVersion())
		if !ok {
			continue
		}
		if err := v.addBoxes(&k, []*command.KeyBox{{NodeId: id[:], Box: nk.GetBox()}}); err != nil {
			return err
		}
		v.putKey(k)
	}
	return nil
}

// addBoxes gives a key more boxes. Nodes that have one keep it.
func (v *View) addBoxes(k *Key, boxes []*command.KeyBox) error {
	all := maps.Clone(k.boxes)
	if all == nil {
		all = make(map[identity.NodeID][]byte, len(boxes))
	}
	for _, b := range boxes {
		id, err := identity.NodeIDFromBytes(b.GetNodeId())
		if err != nil {
			return refuse(command.CodeInvalid, "%s", err)
		}
		n, ok := v.Node(id)
		switch {
		case !ok:
			return refuse(command.CodeConflict, "the node %s is no member: it gets no key", id)
		case !MayHold(n, k.Kind):
			return refuse(command.CodeDenied, "the node of site %s is a witness: it gets no mesh key", n.Site)
		case len(b.GetBox()) == 0 || len(b.GetBox()) > maxBox:
			return refuse(command.CodeInvalid, "a key's box has 1 to %d bytes, not %d", maxBox, len(b.GetBox()))
		}
		if _, ok := all[id]; !ok {
			all[id] = slices.Clone(b.GetBox())
		}
	}
	k.boxes = all
	return nil
}

func (v *View) keyStep(m *command.KeyStep) (int64, error) {
	if err := checkKind(m.GetKind()); err != nil {
		return 0, err
	}
	gossip := m.GetKind() == command.KeyKind_KEY_KIND_GOSSIP
	name := KeyName(m.GetKind())
	k, ok := v.Key(m.GetKind(), m.GetVersion())
	if !ok && m.GetStep() != command.KeyStep_STEP_ADD {
		return 0, refuse(command.CodeConflict, "there is no version %d of the %s key", m.GetVersion(), name)
	}
	switch m.GetStep() {
	case command.KeyStep_STEP_ADD:
		return 0, v.addKey(m)
	case command.KeyStep_STEP_BOX:
		if err := v.addBoxes(&k, m.GetBoxes()); err != nil {
			return 0, err
		}
		v.putKey(k)
		return 0, nil
	case command.KeyStep_STEP_USE:
		newest, _ := v.NewestKey(m.GetKind())
		switch {
		case !gossip:
			return 0, refuse(command.CodeInvalid, "the newest mesh key is used from the moment it is there")
		case k.Version != newest.Version:
			return 0, refuse(command.CodeConflict, "version %d of the gossip key is not the newest", k.Version)
		case k.Version == v.keyState.GossipPrimary:
			return 0, nil // again is as good as once
		}
		if missing := v.WithoutBox(k); len(missing) > 0 {
			return 0, refuse(command.CodeConflict, "site %s cannot open version %d of the gossip key yet", missing[0].Site, k.Version)
		}
		v.keyState.GossipPrimary = k.Version
		v.keyState.GossipRevision++
		return 0, nil
	case command.KeyStep_STEP_REMOVE:
		newest, _ := v.NewestKey(m.GetKind())
		switch {
		case k.Version == newest.Version:
			return 0, refuse(command.CodeConflict, "version %d of the %s key is in use", k.Version, name)
		case gossip && k.Version == v.keyState.GossipPrimary:
			return 0, refuse(command.CodeConflict, "version %d of the gossip key is in use", k.Version)
		case !gossip && v.SealedWith(k.Version) > 0:
			return 0, refuse(command.CodeConflict, "version %d of the mesh key still seals secrets", k.Version)
		}
		v.dropKey(k.Kind, k.Version)
		if gossip {
			v.keyState.GossipRevision++
		}
		return 0, nil
	default:
		return 0, refuse(command.CodeInvalid, "there is no step %d in a key's life", m.GetStep())
	}
}

// addKey takes a new version. The first gossip key is used at once.
func (v *View) addKey(m *command.KeyStep) error {
	keys, name := v.Keys(m.GetKind()), KeyName(m.GetKind())
	gossip := m.GetKind() == command.KeyKind_KEY_KIND_GOSSIP
	next := uint32(1)
	if len(keys) > 0 {
		next = keys[len(keys)-1].Version + 1
	}
	switch {
	case m.GetVersion() != next:
		return refuse(command.CodeConflict, "the next version of the %s key is %d, not %d", name, next, m.GetVersion())
	case gossip && len(keys) > 1:
		return refuse(command.CodeConflict, "the gossip key is being rotated already")
	case len(keys) >= MaxMeshKeys:
		return refuse(command.CodeConflict, "there are %d versions of the mesh key: what they sealed must be sealed anew first", len(keys))
	case len(m.GetBoxes()) == 0:
		return refuse(command.CodeInvalid, "a key that nobody can open is of no use")
	}
	k := Key{Kind: m.GetKind(), Version: next, CreatedAt: v.now()}
	if err := v.addBoxes(&k, m.GetBoxes()); err != nil {
		return err
	}
	v.putKey(k)
	if !gossip {
		v.keyState.MeshDue = false
		return nil
	}
	v.keyState.GossipDue = false
	v.keyState.GossipRevision++
	if len(keys) == 0 {
		v.keyState.GossipPrimary = next
	}
	return nil
}

// firstKeys takes the keys that a mesh is made with. Those that are not there
// are due.
func (v *View) firstKeys(id identity.NodeID, keys []*command.NodeKey) error {
	v.keyState.GossipDue, v.keyState.MeshDue = true, true
	for _, nk := range keys {
		err := checkKind(nk.GetKind())
		if err == nil {
			err = v.addKey(&command.KeyStep{Kind: nk.GetKind(), Version: nk.GetVersion(), Boxes: []*command.KeyBox{{NodeId: id[:], Box: nk.GetBox()}}})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// KeyName is what people call a kind of key.
func KeyName(kind command.KeyKind) string {
	switch kind {
	case command.KeyKind_KEY_KIND_GOSSIP:
		return "gossip"
	case command.KeyKind_KEY_KIND_MESH:
		return "mesh"
	default:
		return "unknown"
	}
}

func (v *View) secretSet(m *command.SecretSet) (int64, error) {
	p := secrets.Place{Object: m.GetObject(), Field: m.GetField()}
	for _, s := range []string{p.Object, p.Field} {
		if err := checkText("secret's name", s); err != nil {
			return 0, err
		}
		if s == "" || len(s) > maxSecretName || bytes.ContainsRune([]byte(s), 0) {
			return 0, refuse(command.CodeInvalid, "a secret's object and field have 1 to %d bytes each and no zero byte", maxSecretName)
		}
	}
	old, there := v.Secret(p)
	if m.GetIfVersion() != 0 && !there {
		return 0, refuse(command.CodeConflict, "the secret %s was removed meanwhile: look again and repeat", p)
	}
	if err := checkVersion("secret "+p.String(), old.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	if len(m.GetSealed()) == 0 {
		v.secrets, _, _ = v.secrets.Delete(placeKey(p))
		return 0, nil
	}
	if len(m.GetSealed()) > maxSecretBytes {
		return 0, refuse(command.CodeInvalid, "a sealed secret has at most %d bytes, not %d", maxSecretBytes, len(m.GetSealed()))
	}
	if !there && v.secrets.Len() >= maxSecrets {
		return 0, refuse(command.CodeInvalid, "there are %d secrets already", v.secrets.Len())
	}
	version, err := secrets.KeyVersion(m.GetSealed())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err)
	}
	if _, ok := v.Key(command.KeyKind_KEY_KIND_MESH, version); !ok {
		return 0, refuse(command.CodeConflict, "the secret is sealed with version %d of the mesh key, which is not there: seal it again", version)
	}
	v.putSecret(Secret{Place: p, Sealed: slices.Clone(m.GetSealed()), KeyVer: version, Version: v.index, UpdatedAt: v.now()})
	return 0, nil
}

func (v *View) putSecret(s Secret) { v.secrets, _, _ = v.secrets.Insert(placeKey(s.Place), s) }

func (v *View) recoverySet(actor string, m *command.RecoverySet) (int64, error) {
	switch {
	case m.GetRecipient() == "" || len(m.GetRecipient()) > maxRecipient:
		return 0, refuse(command.CodeInvalid, "a recovery key has 1 to %d characters", maxRecipient)
	case v.keyState.Recovery != "" && !m.GetReplace():
		return 0, refuse(command.CodeExists, "there is a recovery key already, made at %s by %s: replace it only if its private half is lost or known to others",
			v.keyState.RecoveryAt.Format(time.RFC3339), v.keyState.RecoveryBy)
	}
	if err := checkText("recovery key", m.GetRecipient()); err != nil {
		return 0, err
	}
	v.keyState.Recovery, v.keyState.RecoveryAt, v.keyState.RecoveryBy = m.GetRecipient(), v.now(), clip(actor)
	return 0, nil
}

// keyRecords yields the rows of keys and secrets.
func (v *View) keyRecords(yield func(*Record) bool) bool {
	for _, k := range v.keys {
		row := &KeyRow{Kind: k.Kind, Version: k.Version, CreatedUnixNs: toNanos(k.CreatedAt)}
		for _, id := range slices.SortedFunc(maps.Keys(k.boxes), func(a, b identity.NodeID) int { return bytes.Compare(a[:], b[:]) }) {
			row.Boxes = append(row.Boxes, &command.KeyBox{NodeId: id[:], Box: k.boxes[id]})
		}
		if !yield(&Record{Row: &Record_Key{row}}) {
			return false
		}
	}
	for s := range v.Secrets() {
		row := &SecretRow{Object: s.Place.Object, Field: s.Place.Field, Sealed: s.Sealed, Version: s.Version, UpdatedUnixNs: toNanos(s.UpdatedAt)}
		if !yield(&Record{Row: &Record_Secret{row}}) {
			return false
		}
	}
	return true
}

func (s KeyState) row() *KeysRow {
	return &KeysRow{GossipPrimary: s.GossipPrimary, GossipRevision: s.GossipRevision, GossipDue: s.GossipDue, MeshDue: s.MeshDue,
		Recovery: s.Recovery, RecoveryUnixNs: toNanos(s.RecoveryAt), RecoveryBy: s.RecoveryBy}
}

func (r *KeysRow) keyState() KeyState {
	return KeyState{GossipPrimary: r.GetGossipPrimary(), GossipRevision: r.GetGossipRevision(), GossipDue: r.GetGossipDue(), MeshDue: r.GetMeshDue(),
		Recovery: r.GetRecovery(), RecoveryAt: fromNanos(r.GetRecoveryUnixNs()), RecoveryBy: r.GetRecoveryBy()}
}

func (v *View) loadKey(r *KeyRow) error {
	k := Key{Kind: r.GetKind(), Version: r.GetVersion(), CreatedAt: fromNanos(r.GetCreatedUnixNs()), boxes: make(map[identity.NodeID][]byte, len(r.GetBoxes()))}
	for _, b := range r.GetBoxes() {
		id, err := identity.NodeIDFromBytes(b.GetNodeId())
		if err != nil {
			return err
		}
		k.boxes[id] = b.GetBox()
	}
	v.putKey(k)
	return nil
}

func (v *View) loadSecret(r *SecretRow) error {
	version, err := secrets.KeyVersion(r.GetSealed())
	if err != nil {
		return err
	}
	v.putSecret(Secret{Place: secrets.Place{Object: r.GetObject(), Field: r.GetField()}, Sealed: r.GetSealed(), KeyVer: version,
		Version: counted(r.GetVersion()), UpdatedAt: fromNanos(r.GetUpdatedUnixNs())})
	return nil
}

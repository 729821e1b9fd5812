// Package backup is the file that outlives a mesh: its control state, sealed to
// a recovery key.
//
// The file is an age file (age-encryption.org/v1) to one X25519 recipient: the
// nodes know only the recovery key's public half, whoever has the private half
// needs nothing else, not even this program, to open it. Within it, see
// backup.proto:
//
//	format 1: Header, Items (rows of the state, mesh keys), an Item with the number of Items
//
// age authenticates the file piece by piece, and its end: a file that was cut,
// changed or prolonged is refused. Read therefore takes all of it before it
// gives anything. What age does not say is who made the file: anybody who knows
// the public half could. Keep backups, and their SHA-256, where others cannot write.
package backup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

const (
	format = 1
	// maxItem bounds one row on reading, as in snapshots.
	maxItem = 1 << 20
	// MaxBytes bounds what Read takes: 10,000 users with 50,000 grants are 10 MB.
	MaxBytes = 1 << 30
	// maxKeyFile bounds a recovery key's file: a key and some lines of comment.
	maxKeyFile = 16 << 10
	ageMagic   = "age-encryption.org/"
)

var delim = protodelim.UnmarshalOptions{MaxSize: maxItem}

// The ways in which a backup is refused. Errors of Read wrap one of them and say
// more, in words for people.
var (
	ErrNotBackup = errors.New("this is not a backup of portolan")
	ErrWrongKey  = errors.New("the backup is sealed to another recovery key")
	ErrDamaged   = errors.New("the backup is damaged")
	ErrNewer     = errors.New("the backup was made by a newer version of portolan")
)

// NewKey makes a recovery key: the private half for people to keep, and the
// public one for the mesh.
func NewKey() (private, public string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make a recovery key: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// CheckRecipient reads the public half of a recovery key.
func CheckRecipient(public string) error {
	if _, err := age.ParseX25519Recipient(public); err != nil {
		return errors.New("this is not the public half of a recovery key: it begins with age1")
	}
	return nil
}

// ReadKey reads the file of a private recovery key, as NewKey's private with
// lines of comment (#) and empty ones around it.
func ReadKey(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxKeyFile+1))
	if err != nil {
		return "", fmt.Errorf("read the recovery key: %w", err)
	}
	var key string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if key != "" || len(b) > maxKeyFile {
			return "", errors.New("the recovery key's file has more than one key in it")
		}
		key = line
	}
	if _, err := age.ParseX25519Identity(key); err != nil {
		// Never with the text: it may be a secret all the same.
		return "", errors.New("this is not a recovery key: it begins with AGE-SECRET-KEY-1 and was shown when portolan keys recovery create made it")
	}
	return key, nil
}

// Source is what Write writes.
type Source struct {
	View *state.View
	// MeshKeys open the secrets in View; none are needed where there are none.
	MeshKeys map[uint32]secrets.Key
	// Site and Version are those of the node that makes the backup.
	Site, Version string
	Now           time.Time
}

// Write writes a backup, sealed to recipient. It ends in an error, and the file
// is not complete, if w does not take all of it.
func Write(w io.Writer, recipient string, s Source) error {
	to, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return fmt.Errorf("backup: the mesh's recovery key is none: %w", err)
	}
	sealed, err := age.Encrypt(w, to)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	out := bufio.NewWriter(sealed)
	mesh := s.View.Mesh()
	err = write(out, &Header{Format: format, Level: mesh.Level, MadeUnixNs: s.Now.UnixNano(), MeshId: mesh.ID[:], Index: s.View.Index(), Site: s.Site, Version: s.Version})
	if err != nil {
		return err
	}
	var n uint64
	for _, v := range slices.Sorted(maps.Keys(s.MeshKeys)) {
		key := s.MeshKeys[v]
		if err := write(out, &Item{Item: &Item_MeshKey{&MeshKey{Version: v, Key: key[:]}}}); err != nil {
			return err
		}
		n++
	}
	for row := range s.View.Lasting {
		if err := write(out, &Item{Item: &Item_Row{row}}); err != nil {
			return err
		}
		n++
	}
	if err := write(out, &Item{Item: &Item_End{&End{Items: n}}}); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	// The last piece is marked as such: without it the file is refused.
	if err := sealed.Close(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// Backup is a backup that was read to its end and found whole.
type Backup struct {
	Mesh    identity.MeshID
	Made    time.Time
	Index   uint64 // raft index of the state
	Level   uint32
	Site    string // whose node made it
	Version string // of that node's binary

	rows []*state.Record
	keys map[uint32]secrets.Key
}

// Read reads all of a backup. private is the recovery key's private half.
func Read(r io.Reader, private string) (*Backup, error) {
	id, err := age.ParseX25519Identity(private)
	if err != nil {
		return nil, errors.New("this is not a recovery key")
	}
	in := bufio.NewReader(r)
	if magic, _ := in.Peek(len(ageMagic)); string(magic) != ageMagic {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrNotBackup)
	}
	var wrong *age.NoIdentityMatchError
	plain, err := age.Decrypt(in, id)
	switch {
	case errors.As(err, &wrong):
		return nil, fmt.Errorf("%w than this one: look for the one whose public half \"portolan keys list\" named then", ErrWrongKey)
	case err != nil:
		return nil, fmt.Errorf("%w: its head cannot be read: %w", ErrDamaged, err)
	}
	body := newBounded(plain)
	b, err := read(body)
	if err != nil {
		return nil, err
	}
	// All that age has to say: a piece too few or too many, or a changed one.
	if _, err := body.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("there is more after its end")
		}
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return b, nil
}

func read(in *bounded) (*Backup, error) {
	var h Header
	if err := delim.UnmarshalFrom(in, &h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, noEOF(err))
	}
	if h.GetFormat() != format || h.GetLevel() > command.Level {
		if h.GetFormat() == 0 {
			return nil, fmt.Errorf("%w: it has no format", ErrNotBackup)
		}
		return nil, fmt.Errorf("%w (%s, format %d, command level %d): this one knows format %d and level %d; restore with the version that made it, or a later one",
			ErrNewer, h.GetVersion(), h.GetFormat(), h.GetLevel(), format, command.Level)
	}
	b := &Backup{Made: time.Unix(0, h.GetMadeUnixNs()).UTC(), Index: h.GetIndex(), Level: h.GetLevel(), Site: h.GetSite(), Version: h.GetVersion(), keys: make(map[uint32]secrets.Key)}
	var err error
	if b.Mesh, err = identity.MeshIDFromBytes(h.GetMeshId()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for n := uint64(0); ; n++ {
		var it Item
		if err := delim.UnmarshalFrom(in, &it); err != nil {
			return nil, fmt.Errorf("%w: item %d: %w", ErrDamaged, n, noEOF(err))
		}
		switch item := it.GetItem().(type) {
		case *Item_Row:
			b.rows = append(b.rows, item.Row)
		case *Item_MeshKey:
			if len(item.MeshKey.GetKey()) != len(secrets.Key{}) {
				return nil, fmt.Errorf("%w: a mesh key of %d bytes", ErrDamaged, len(item.MeshKey.GetKey()))
			}
			b.keys[item.MeshKey.GetVersion()] = secrets.Key(item.MeshKey.GetKey())
		case *Item_End:
			if item.End.GetItems() != n {
				return nil, fmt.Errorf("%w: it has %d items, not %d as it says", ErrDamaged, n, item.End.GetItems())
			}
			return b, nil
		default:
			return nil, fmt.Errorf("%w: it has an item of a kind that this one does not know", ErrNewer)
		}
	}
}

// noEOF: a backup that stops before its end is damaged, not finished.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// bounded reads up to left bytes and then fails.
type bounded struct {
	r    *bufio.Reader
	left int64
}

func newBounded(r io.Reader) *bounded { return &bounded{r: bufio.NewReader(r), left: MaxBytes} }

var errTooLarge = fmt.Errorf("it is larger than %d MiB", MaxBytes>>20)

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (b *bounded) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b, one[:])
	return one[0], err
}

// Counts says how much of everything is in a backup.
type Counts struct{ Sites, Users, Projects, Members, Rules, Secrets int }

// Counts counts the rows.
func (b *Backup) Counts() Counts {
	var c Counts
	for _, rec := range b.rows {
		switch row := rec.GetRow().(type) {
		case *state.Record_Site:
			c.Sites++
		case *state.Record_User:
			c.Users++
		case *state.Record_Project:
			if row.Project.GetDeletedUnixNs() == 0 {
				c.Projects++
			}
		case *state.Record_Member:
			c.Members++
		case *state.Record_Rule:
			c.Rules++
		case *state.Record_Secret:
			c.Secrets++
		}
	}
	return c
}

// Sites gives the names of the sites, in the backup's order.
func (b *Backup) Sites() []string {
	var out []string
	for _, rec := range b.rows {
		if s := rec.GetSite(); s != nil {
			out = append(out, s.GetName())
		}
	}
	return out
}

// Renew makes the state of a new mesh, with the first site and node of r; its
// Index and Keys are set here.
func (b *Backup) Renew(r state.Renewal) (*state.State, error) {
	node, err := state.NodeOf(r.Node)
	if err != nil {
		return nil, err
	}
	r.Index = b.Index
	for _, version := range slices.Sorted(maps.Keys(b.keys)) {
		l := secrets.Label{Mesh: r.Mesh, Kind: uint32(command.KeyKind_KEY_KIND_MESH), Version: version, Node: node.ID}
		box, err := secrets.Box(l, node.BoxKey, node.BoxSignature, b.keys[version])
		if err != nil {
			return nil, err
		}
		r.Keys = append(r.Keys, &command.NodeKey{Kind: command.KeyKind_KEY_KIND_MESH, Version: version, Box: box})
	}
	return state.Renew(slices.Values(b.rows), r)
}

func write(w io.Writer, m proto.Message) error {
	if _, err := protodelim.MarshalTo(w, m); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

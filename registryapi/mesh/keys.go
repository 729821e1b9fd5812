package mesh

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/rest"
)

// Keys are the keys that the nodes share, without the keys themselves.
type Keys struct {
	Gossip   []KeyVersion `json:"gossip" doc:"Versions of the gossip key, oldest first"`
	Mesh     []KeyVersion `json:"mesh" doc:"Versions of the mesh key, which seals secrets, oldest first"`
	Rotating []string     `json:"rotating" doc:"Keys whose rotation is not finished: gossip, mesh"`
	Recovery *RecoveryKey `json:"recovery,omitempty" doc:"To whom backups are sealed; missing: there is no recovery key yet"`
}

// KeyVersion is one version of a key.
type KeyVersion struct {
	Version   uint32    `json:"version"`
	State     string    `json:"state" enum:"primary,secondary" doc:"primary: it encrypts, or seals; secondary: it only decrypts"`
	Holders   int       `json:"holders" doc:"Nodes that can open it"`
	Missing   []string  `json:"missing" doc:"Sites with a node that should be able to open it and cannot yet"`
	Sealed    int       `json:"sealed" doc:"Secrets that it has sealed; of gossip keys always 0"`
	CreatedAt time.Time `json:"created_at"`
}

// RecoveryKey is the public half of the recovery key.
type RecoveryKey struct {
	Recipient string    `json:"recipient" doc:"As age writes an X25519 recipient"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
}

// RotateRequest asks for new keys.
type RotateRequest struct {
	Gossip bool `json:"gossip,omitempty" doc:"A new gossip key"`
	Mesh   bool `json:"mesh,omitempty" doc:"A new mesh key"`
}

// RecoveryRequest sets the recovery key. Its private half is made, and stays,
// where the request comes from.
type RecoveryRequest struct {
	Recipient string `json:"recipient" minLength:"1" maxLength:"255" doc:"Public half, as age writes an X25519 recipient"`
	Replace   bool   `json:"replace,omitempty" doc:"Though there is one already: backups made so far still need the one before"`
}

type keysOut struct{ Body Keys }

func (a *API) registerKeys() {
	rest.Register(a.rest, rest.Op{ID: "get-keys", Method: http.MethodGet, Path: "/keys", Tag: "keys", Who: rest.SystemAdmin,
		Summary: "The keys that the nodes share: versions and how far a rotation is"}, func(context.Context, *struct{}) (*keysOut, error) {
		return &keysOut{Body: a.keys()}, nil
	})
	rest.Register(a.rest, rest.Op{ID: "rotate-keys", Method: http.MethodPost, Path: "/keys/rotate", Tag: "keys", Who: rest.SystemAdmin,
		Summary: "Ask for new keys; the nodes make and install them, whatever stops or restarts meanwhile"}, func(ctx context.Context, in *struct{ Body RotateRequest }) (*keysOut, error) {
		if _, err := a.propose(ctx, &command.KeysRotate{Gossip: in.Body.Gossip, Mesh: in.Body.Mesh}); err != nil {
			return nil, err
		}
		return &keysOut{Body: a.keys()}, nil
	})
	rest.Register(a.rest, rest.Op{ID: "set-recovery-key", Method: http.MethodPut, Path: "/keys/recovery", Tag: "keys", Who: rest.SystemAdmin,
		Summary: "Say to whom backups are sealed"}, func(ctx context.Context, in *struct{ Body RecoveryRequest }) (*keysOut, error) {
		if err := a.cfg.CheckRecovery(in.Body.Recipient); err != nil {
			return nil, rest.Invalid("%s", err)
		}
		if _, err := a.propose(ctx, &command.RecoverySet{Recipient: in.Body.Recipient, Replace: in.Body.Replace}); err != nil {
			return nil, err
		}
		return &keysOut{Body: a.keys()}, nil
	})
	rest.Register(a.rest, rest.Op{ID: "get-backup", Method: http.MethodGet, Path: "/backup", Tag: "keys", Who: rest.SystemAdmin,
		Summary: "The control state as a file, sealed to the recovery key; 412 if there is none"}, func(ctx context.Context, _ *struct{}) (*rest.Stream, error) {
		name := "portolan-" + a.cfg.Now().UTC().Format("20060102T150405Z") + ".backup"
		actor := rest.Actor(ctx)
		return rest.StreamOf(a.rest, "get-backup", name, func(ctx context.Context, w io.Writer) error {
			err := a.cfg.Backup(ctx, w)
			if err == nil {
				a.cfg.Logger.InfoContext(ctx, "a backup was made", "actor", actor)
			}
			return err
		}), nil
	})
}

func (a *API) keys() Keys {
	v := a.cfg.View()
	st := v.KeyState()
	out := Keys{Gossip: []KeyVersion{}, Mesh: []KeyVersion{}, Rotating: []string{}}
	gossip, mesh := v.Keys(command.KeyKind_KEY_KIND_GOSSIP), v.Keys(command.KeyKind_KEY_KIND_MESH)
	for _, k := range gossip {
		out.Gossip = append(out.Gossip, keyVersion(v, k, k.Version == st.GossipPrimary))
	}
	for i, k := range mesh {
		kv := keyVersion(v, k, i == len(mesh)-1)
		kv.Sealed = v.SealedWith(k.Version)
		out.Mesh = append(out.Mesh, kv)
	}
	if st.GossipDue || len(gossip) != 1 {
		out.Rotating = append(out.Rotating, "gossip")
	}
	if st.MeshDue || len(mesh) != 1 {
		out.Rotating = append(out.Rotating, "mesh")
	}
	if st.Recovery != "" {
		out.Recovery = &RecoveryKey{Recipient: st.Recovery, CreatedAt: st.RecoveryAt, CreatedBy: st.RecoveryBy}
	}
	return out
}

func keyVersion(v *state.View, k state.Key, primary bool) KeyVersion {
	out := KeyVersion{Version: k.Version, State: "secondary", Holders: k.Boxes(), Missing: []string{}, CreatedAt: k.CreatedAt}
	if primary {
		out.State = "primary"
	}
	for _, n := range v.WithoutBox(k) {
		out.Missing = append(out.Missing, n.Site)
	}
	return out
}

package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/access"
)

const (
	// AdminPasswordEnv gives the administrator's password of a new mesh.
	AdminPasswordEnv = "PORTOLAN_ADMIN_PASSWORD"
	// AdminPasswordFile keeps it in the data directory if it was made.
	AdminPasswordFile = "admin-password"
)

// record is this node's entry in the node list. A witness has neither a store
// nor a data port.
func record(cfg Config, id *identity.Identity, storeID identity.StoreID) *command.Node {
	box, signature := id.BoxKey()
	s := cfg.Settings
	m := &command.Node{
		Id: id.ID[:], BoxKey: box[:], BoxSignature: signature,
		Host: s.Advertise, GossipPort: uint32(s.GossipPort), ControlPort: uint32(s.ControlPort),
		RegistryUrl: s.RegistryURL, Level: command.Level, Version: cfg.Version, Witness: s.Witness,
	}
	if !s.Witness {
		m.StoreId, m.DataPort = storeID[:], uint32(s.DataPort)
	}
	return m
}

// newMesh is the first command of a mesh. The password is returned if it was
// made here and is on disk: it is shown once, after the mesh is there.
func newMesh(cfg Config, id *identity.Identity, storeID identity.StoreID) (mesh *command.MeshCreate, made string, err error) {
	password := cfg.AdminPassword
	if password == "" {
		if made, err = keptPassword(filepath.Join(cfg.Settings.Data, AdminPasswordFile)); err != nil {
			return nil, "", err
		}
		password = made
	}
	hash, err := access.HashPassword(password)
	if err != nil {
		return nil, "", err
	}
	meshID, library := identity.NewMeshID(), identity.NewProjectID()
	generation := make([]byte, 16)
	_, _ = rand.Read(generation) // crypto/rand.Read never fails (Go 1.24)
	return &command.MeshCreate{
		MeshId: meshID[:], Site: cfg.Settings.Site, Node: record(cfg, id, storeID),
		LibraryProjectId: library[:], AdminPasswordHash: hash, RaftGeneration: generation,
	}, made, nil
}

// keptPassword gives the password that an interrupted first start kept, or
// makes one and keeps it before anything depends on it.
func keptPassword(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 1 {
		return string(b[:len(b)-1]), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the administrator's password can't be kept: %w", err)
	}
	random := make([]byte, 12)
	_, _ = rand.Read(random)
	password := hex.EncodeToString(random)
	if err := config.WriteFile(path, []byte(password+"\n")); err != nil {
		return "", fmt.Errorf("the administrator's password can't be kept: %w", err)
	}
	return password, nil
}

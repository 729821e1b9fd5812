package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
)

// JoinConfig is what [Join] needs.
type JoinConfig struct {
	Settings config.Config
	Token    string
	Version  string
	// Say is told, in lines for people, what is being done.
	Say func(string)
	// Now is this node's clock; nil is time.Now.
	Now func() time.Time
}

// Join makes the data directory that of a member and gives the settings to
// serve with. A directory that is a member's already is left as it is. After an
// error, or a crash, Join may be called again with the same token: the mesh
// knows the same key again.
func Join(ctx context.Context, cfg JoinConfig) (config.Config, error) {
	settings := cfg.Settings
	token, err := consensus.ParseToken(cfg.Token)
	if err != nil {
		return settings, err
	}
	lock, err := config.Lock(settings.Data)
	if err != nil {
		return settings, err
	}
	defer lock.Close()
	format, joined, err := config.ReadFormat(settings.Data)
	if err != nil {
		return settings, err
	}
	if joined {
		if err := format.CheckMesh(settings.Data, token.Mesh); err != nil {
			return settings, err
		}
		if settings.Site != "" && settings.Site != token.Site {
			return settings, fmt.Errorf("the data directory %s is that of site %q already, and the token is for site %q: name another --data for it", settings.Data, settings.Site, token.Site)
		}
		cfg.Say("this directory has joined already")
		return settings, settings.SetSite(token.Site)
	}
	if err := settings.SetSite(token.Site); err != nil {
		return settings, err
	}
	// What would keep the node from serving is found before it is a member.
	if err := tryAllPorts(ctx, settings); err != nil {
		return settings, err
	}
	mine := newlyMade(settings.Data)
	id, _, err := identity.LoadOrCreate(settings.Data)
	if err != nil {
		return settings, err
	}
	var storeID identity.StoreID
	if !settings.Witness {
		s, err := store.Open(ctx, store.Config{Dir: filepath.Join(settings.Data, storeDir), Identity: id})
		if err != nil {
			return settings, err
		}
		storeID = s.ID()
		if err := s.Close(); err != nil {
			return settings, err
		}
	}
	answer, err := consensus.Join(ctx, consensus.JoinConfig{
		Token: token, Identity: id, Site: settings.Site, Now: cfg.Now, Progress: cfg.Say,
		Node: record(Config{Settings: settings, Version: cfg.Version}, id, storeID),
	})
	var refused *consensus.NotTakenError
	if errors.As(err, &refused) {
		// The mesh does not know this key: nothing of it shall stay. A lost answer is
		// another matter: the key is what the mesh would know again.
		return settings, errors.Join(err, mine.remove())
	}
	if err != nil {
		return settings, err
	}
	// From an attempt that ended here before: the mesh's answer is newer.
	dir := filepath.Join(settings.Data, raftDir)
	if err := os.RemoveAll(dir); err != nil {
		return settings, err
	}
	if err := consensus.KeepSeeds(dir, answer.Profile.Name, answer.Generation[:], answer.Nodes); err != nil {
		return settings, err
	}
	if err := settings.Save(); err != nil {
		return settings, err
	}
	// Last: without it the directory is nobody's and the next Join begins anew.
	if err := config.WriteFormat(settings.Data, answer.Mesh, id.ID); err != nil {
		return settings, err
	}
	as := " as site "
	if settings.Witness {
		as = " as the witness "
	}
	cfg.Say("joined mesh " + answer.Mesh.String() + as + settings.Site)
	return settings, nil
}

// made are the parts of a data directory that a join makes before it asks.
type made []string

// newlyMade lists those that are not there yet.
func newlyMade(dir string) made {
	var m made
	for _, name := range []string{identity.KeyFile, storeDir} {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			m = append(m, path)
		}
	}
	return m
}

// remove takes them away again; what was there before stays.
func (m made) remove() error {
	var errs []error
	for _, path := range m {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

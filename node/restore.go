package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/backup"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
)

// NewRecoveryKey makes a recovery key: the private half for people to keep, the
// public one for the mesh.
func NewRecoveryKey() (private, public string, err error) { return backup.NewKey() }

// ReadRecoveryKey reads the file of a private recovery key.
func ReadRecoveryKey(r io.Reader) (string, error) { return backup.ReadKey(r) }

// BackupFile is a backup that was read to its end and found whole.
type BackupFile = backup.Backup

// ReadBackup reads all of a backup; it changes nothing.
func ReadBackup(r io.Reader, recoveryKey string) (*BackupFile, error) {
	return backup.Read(r, recoveryKey)
}

// RestoreConfig is what [Restore] needs.
type RestoreConfig struct {
	Settings config.Config
	Backup   *BackupFile
	Version  string // of the binary
	// Say is told, in lines for people, what is being done.
	Say func(string)
	// Now is this node's clock; nil is time.Now.
	Now func() time.Time
}

// Restore makes the data directory that of the first node of a new mesh with the
// backup's control state, and gives the settings to serve with. The directory
// must belong to no mesh. After an error, or a crash, Restore may be called
// again: until its last step the directory is nobody's.
func Restore(ctx context.Context, cfg RestoreConfig) (config.Config, error) {
	settings := cfg.Settings
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	lock, err := config.Lock(settings.Data)
	if err != nil {
		return settings, err
	}
	defer lock.Close()
	format, made, err := config.ReadFormat(settings.Data)
	if err != nil {
		return settings, err
	}
	if made {
		return settings, fmt.Errorf("the data directory %s is not empty: it belongs to mesh %s, and a backup is restored into an empty one; name another --data", settings.Data, format.Mesh)
	}
	sites := cfg.Backup.Sites()
	if settings.Site == "" {
		return settings, fmt.Errorf("--site is missing: say which site this machine is; the backup has %s", strings.Join(sites, ", "))
	}
	// What would keep the node from serving is found before anything is written.
	if err := tryAllPorts(ctx, settings); err != nil {
		return settings, err
	}
	mine := newlyMade(settings.Data)
	id, _, err := identity.LoadOrCreate(settings.Data)
	if err != nil {
		return settings, err
	}
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(settings.Data, storeDir), Identity: id})
	if err != nil {
		return settings, errors.Join(err, mine.remove())
	}
	storeID := s.ID()
	if err := s.Close(); err != nil {
		return settings, err
	}
	// From an attempt that ended here before.
	dir := filepath.Join(settings.Data, raftDir)
	if err := os.RemoveAll(dir); err != nil {
		return settings, err
	}
	mesh, err := consensus.Restore(dir, cfg.Backup, id, settings.Site, record(Config{Settings: settings, Version: cfg.Version}, id, storeID), cfg.Now())
	if err != nil {
		return settings, errors.Join(err, os.RemoveAll(dir), mine.remove())
	}
	// The password of the new mesh is that of the backup, whatever an interrupted
	// first start has left here.
	if err := os.Remove(filepath.Join(settings.Data, AdminPasswordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return settings, err
	}
	if err := settings.Save(); err != nil {
		return settings, err
	}
	// Last: without it the directory is nobody's and the next Restore begins anew.
	if err := config.WriteFormat(settings.Data, mesh, id.ID); err != nil {
		return settings, err
	}
	cfg.Say(fmt.Sprintf("restored as mesh %s, with site %s as its only member", mesh, settings.Site))
	return settings, nil
}

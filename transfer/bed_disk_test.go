package transfer_test

import (
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"github.com/portolan/portolan/consensus/state"
)

// diskCopy is a copy of a site's store.
type diskCopy struct {
	dir   string
	index uint64 // of the last command applied there by then
}

// copyDisk copies a site's store, and starts the site again.
func (n *site) copyDisk() diskCopy {
	n.t.Helper()
	n.stop()
	n.raft.Lock()
	c := diskCopy{filepath.Join(n.t.TempDir(), "store"), n.index}
	n.raft.Unlock()
	must(n.t, os.CopyFS(c.dir, os.DirFS(n.dir+"/store")))
	n.open()
	n.start()
	return c
}

// putBack stops a site, and puts its store back to a copy.
func (n *site) putBack(c diskCopy) {
	n.t.Helper()
	n.stop()
	must(n.t, os.RemoveAll(n.dir+"/store"))
	must(n.t, os.CopyFS(n.dir+"/store", os.DirFS(c.dir)))
}

// stateBack puts the control state of a stopped site back, too: it stands still there,
// see behind.
func (n *site) stateBack(index uint64) {
	n.raft.Lock()
	defer n.raft.Unlock()
	n.state, n.index, n.lag = state.New(), 0, true
	for _, env := range n.log[:index] {
		n.index++
		_, _ = n.state.Apply(n.index, env) // refused where it was refused before
	}
}

// lose removes one row in so many of one table behind a stopped node's back.
func (n *site) lose(table byte, in int) (lost int) {
	n.t.Helper()
	db, err := badger.Open(badger.DefaultOptions(filepath.Join(n.dir, "store", "catalog")).WithLogger(nil))
	must(n.t, err)
	must(n.t, db.Update(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{table}})
		defer it.Close()
		seen := 0
		for it.Rewind(); it.Valid(); it.Next() {
			if seen++; seen%in == 0 {
				if err := txn.Delete(it.Item().KeyCopy(nil)); err != nil {
					return err
				}
				lost++
			}
		}
		return nil
	}))
	must(n.t, db.Close())
	return lost
}

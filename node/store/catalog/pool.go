package catalog

import (
	"reflect"
	"unsafe"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/ristretto/v2/z"
)

// Badger builds each table in an allocator, and keeps the last eight for the next
// ones, whatever they have grown to: a memtable that is flushed takes 60 MiB and
// more, in the one that comes next, so that under a steady load all eight grow to
// that and none is let go of. They held 700 MiB. There is no option for it.
//
// So each is released as it comes back, and the collector has it: a builder makes
// one anew, which costs less than the table's bytes.

// freeAllocators releases what Badger's builders give back, until the database is
// closed.
func (c *Catalog) freeAllocators(returned <-chan *z.Allocator) {
	for a := range returned { // Badger's Close closes it
		a.Release()
	}
}

// allocators is the channel on which a database's builders give back their
// allocators; nil: this version of Badger has none. The field is Badger's own: it
// is only read, and what is taken out of a channel is nobody else's.
func allocators(db *badger.DB) chan *z.Allocator {
	pool := reflect.ValueOf(db).Elem().FieldByName("allocPool")
	if pool.Kind() != reflect.Pointer || pool.IsNil() {
		return nil
	}
	ch := pool.Elem().FieldByName("allocCh")
	if ch.Kind() != reflect.Chan {
		return nil
	}
	returned, _ := reflect.NewAt(ch.Type(), unsafe.Pointer(ch.UnsafeAddr())).Elem().Interface().(chan *z.Allocator)
	return returned
}

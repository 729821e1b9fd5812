// Package table keeps rows in the order of their keys, in trees that never change:
// an edit gives another tree, which shares with the old one what is the same in
// both. So a view of the state costs a pointer for each of its trees, and readers
// need no locks.
//
// A tree may be read by any number of goroutines. The trees that come from one
// another by Insert and Delete must be made by one goroutine at a time, which may
// be another than the readers'.
//
// It is a B-tree of github.com/google/btree with copies of its path at each edit.
// A radix tree, which was here before, costs two channels and three allocations
// for each row: 330 bytes beside the row itself, and a start that takes as long
// as making them. A row costs 40 to 80 bytes here.
package table

import (
	"iter"
	"strings"

	"github.com/google/btree"
)

// degree is the least number of children of a node: nodes hold 15 to 31 rows. Each
// edit copies one node of each level, of which there are four for 50,000 rows.
const degree = 16

// row has a pointer to its value, which is never written through: a copy of a node
// copies 24 bytes for each row, however large it is.
type row[T any] struct {
	key string
	val *T
}

func (r row[T]) value() (val T) {
	if r.val != nil {
		val = *r.val
	}
	return val
}

// Tree is rows in the order of the bytes of their keys.
type Tree[T any] struct {
	rows  *btree.BTreeG[row[T]]
	build bool
}

// New gives an empty tree.
func New[T any]() *Tree[T] {
	return &Tree[T]{rows: btree.NewG(degree, func(a, b row[T]) bool { return a.key < b.key })}
}

// Build lets Insert and Delete change the tree itself, and give it back, until it
// is called with false: for whoever makes a tree that nobody else has yet.
func (t *Tree[T]) Build(on bool) { t.build = on }

// Len is the number of rows.
func (t *Tree[T]) Len() int { return t.rows.Len() }

// Get finds a row.
func (t *Tree[T]) Get(key []byte) (T, bool) {
	r, ok := t.rows.Get(row[T]{key: string(key)})
	return r.value(), ok
}

// Insert gives a tree with the row, and what the key had before.
func (t *Tree[T]) Insert(key []byte, val T) (*Tree[T], T, bool) {
	next := t.edit()
	old, had := next.rows.ReplaceOrInsert(row[T]{key: string(key), val: &val})
	return next, old.value(), had
}

// Delete gives a tree without the row, and what it was.
func (t *Tree[T]) Delete(key []byte) (*Tree[T], T, bool) {
	if !t.rows.Has(row[T]{key: string(key)}) {
		var zero T
		return t, zero, false
	}
	next := t.edit()
	old, had := next.rows.Delete(row[T]{key: string(key)})
	return next, old.value(), had
}

func (t *Tree[T]) edit() *Tree[T] {
	if t.build {
		return t
	}
	return &Tree[T]{rows: t.rows.Clone()}
}

// From yields the rows from the first on whose key is not before from.
func (t *Tree[T]) From(from string) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		t.rows.AscendGreaterOrEqual(row[T]{key: from}, func(r row[T]) bool { return yield(r.key, *r.val) })
	}
}

// Prefix yields the rows whose keys begin with prefix.
func (t *Tree[T]) Prefix(prefix []byte) iter.Seq2[string, T] {
	p := string(prefix)
	return func(yield func(string, T) bool) {
		t.rows.AscendGreaterOrEqual(row[T]{key: p}, func(r row[T]) bool { return strings.HasPrefix(r.key, p) && yield(r.key, *r.val) })
	}
}

// First gives the row with the least key.
func (t *Tree[T]) First() (key string, val T, ok bool) {
	r, ok := t.rows.Min()
	return r.key, r.value(), ok
}

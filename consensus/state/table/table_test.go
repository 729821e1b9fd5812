package table

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

func keys[T any](t *Tree[T], prefix string) []string {
	var out []string
	for k := range t.Prefix([]byte(prefix)) {
		out = append(out, k)
	}
	return out
}

func TestTree_OrderPrefixAndFrom(t *testing.T) {
	tree := New[int]()
	for i, k := range []string{"b", "a/x", "a-b/x", "a", "", "a/"} {
		tree, _, _ = tree.Insert([]byte(k), i)
	}
	if got, want := keys(tree, ""), []string{"", "a", "a-b/x", "a/", "a/x", "b"}; !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
	if got, want := keys(tree, "a/"), []string{"a/", "a/x"}; !slices.Equal(got, want) {
		t.Errorf("prefix %q, want %q", got, want)
	}
	var from []string
	for k := range tree.From("a.") {
		if from = append(from, k); k == "a/x" {
			break
		}
	}
	if want := []string{"a/", "a/x"}; !slices.Equal(from, want) {
		t.Errorf("from %q, want %q", from, want)
	}
	if k, v, ok := tree.First(); k != "" || v != 4 || !ok {
		t.Errorf("first %q %d %v", k, v, ok)
	}
	if _, _, ok := New[int]().First(); ok {
		t.Error("an empty tree has a first row")
	}
}

// TestTree_OldOnesStay makes edits by chance: every tree, also after later ones
// were made of it, has what a map had at its time, and is read meanwhile.
func TestTree_OldOnesStay(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	model, tree := map[string]int{}, New[int]()
	type version struct {
		tree  *Tree[int]
		model map[string]int
	}
	var versions []version
	var wg sync.WaitGroup
	check := func(v version) {
		got := maps.Collect(v.tree.Prefix(nil))
		if !maps.Equal(got, v.model) || v.tree.Len() != len(v.model) {
			t.Errorf("a tree of %d rows has %d", len(v.model), len(got))
		}
		for k, want := range v.model {
			if val, ok := v.tree.Get([]byte(k)); !ok || val != want {
				t.Errorf("%q: %d %v, want %d", k, val, ok, want)
			}
		}
	}
	for i := range 20_000 {
		key := string(binary.BigEndian.AppendUint64(nil, uint64(rnd.IntN(2000))))
		want, had := model[key]
		var old int
		var ok bool
		if rnd.IntN(3) == 0 {
			tree, old, ok = tree.Delete([]byte(key))
			delete(model, key)
		} else {
			tree, old, ok = tree.Insert([]byte(key), i)
			model[key] = i
		}
		if ok != had || old != want {
			t.Fatalf("edit %d gave back %d %v, want %d %v", i, old, ok, want, had)
		}
		if i%500 == 0 {
			v := version{tree, maps.Clone(model)}
			versions = append(versions, v)
			wg.Go(func() { check(v) })
		}
	}
	wg.Wait()
	for _, v := range versions {
		check(v)
	}
}

func TestTree_Build_ChangesItInPlace(t *testing.T) {
	tree := New[int]()
	tree.Build(true)
	for i, k := range strings.Fields("c a b") {
		if next, _, _ := tree.Insert([]byte(k), i); next != tree {
			t.Fatal("another tree was made")
		}
	}
	if next, _, ok := tree.Delete([]byte("c")); next != tree || !ok || tree.Len() != 2 {
		t.Fatalf("%d rows", tree.Len())
	}
	tree.Build(false)
	next, _, _ := tree.Insert([]byte("d"), 4)
	if next == tree || tree.Len() != 2 || next.Len() != 3 {
		t.Errorf("a tree that is built changed: %d rows, then %d", tree.Len(), next.Len())
	}
}

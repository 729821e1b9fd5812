package faultfs

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"
)

// rootIno is FUSE's number of the root directory.
const rootIno = 1

// inode is a file or a directory.
type inode struct {
	mode    uint32 // with the type
	mtime   time.Time
	ctime   time.Time
	content content           // of a file
	entries map[string]uint64 // of a directory; nil for a file
}

func (i *inode) dir() bool { return i.entries != nil }

func (i *inode) clone() *inode {
	c := *i
	c.content = i.content.clone()
	c.entries = maps.Clone(i.entries)
	return &c
}

// Image is what a disk holds. It does not change: each file system that begins
// with it has its own copy.
type Image struct {
	inodes map[uint64]*inode
	next   uint64 // number of the next inode
}

// Empty is a disk with an empty root directory.
func Empty() *Image {
	now := time.Now()
	root := &inode{mode: syscall.S_IFDIR | 0o755, mtime: now, ctime: now, entries: map[string]uint64{}}
	return &Image{inodes: map[uint64]*inode{rootIno: root}, next: 16}
}

func (m *Image) clone() *Image {
	c := &Image{inodes: make(map[uint64]*inode, len(m.inodes)), next: m.next}
	for ino, i := range m.inodes {
		c.inodes[ino] = i.clone()
	}
	return c
}

// Kind is what an operation does.
type Kind uint8

// The kinds of operations that are journalled.
const (
	Create Kind = iota + 1
	Mkdir
	Link
	Unlink
	Rmdir
	Rename
	Write
	Truncate // also what reserves space
	Sync     // fsync and fdatasync of a file
	SyncDir
)

var kindNames = [...]string{"", "create", "mkdir", "link", "unlink", "rmdir", "rename", "write", "truncate", "sync", "syncdir"}

func (k Kind) String() string { return kindNames[k] }

// op is one entry of the journal.
type op struct {
	kind      Kind
	ino       uint64 // the file, or the directory of SyncDir
	dir       uint64 // where name is
	name      string
	toDir     uint64 // of Rename
	toName    string
	off, size int64 // size: of Truncate
	data      []byte
}

// dirs are the directories whose names an operation changes, or which it needs
// to be as they are.
func (o *op) dirs() []uint64 {
	switch o.kind {
	case Create, Mkdir, Link, Unlink:
		return []uint64{o.dir}
	case Rmdir:
		return []uint64{o.dir, o.ino} // which is empty by then
	case Rename:
		return []uint64{o.dir, o.toDir}
	default:
		return nil
	}
}

// apply does to names what the operation did.
func (o *op) apply(m *Image) {
	switch o.kind {
	case Create, Mkdir, Link:
		m.inodes[o.dir].entries[o.name] = o.ino
	case Unlink, Rmdir:
		delete(m.inodes[o.dir].entries, o.name)
	case Rename:
		delete(m.inodes[o.dir].entries, o.name)
		m.inodes[o.toDir].entries[o.toName] = o.ino
	}
}

// how says what survives of what was not synced.
type how int

const (
	none how = iota
	all
	prefix
	scattered
	nHows
)

// crash derives what a power cut after all of ops leaves; live knows every inode
// there ever was.
func crash(base *Image, ops []op, live *Image, seed uint64, named []string) *Image {
	rng := rand.New(rand.NewPCG(seed, uint64(len(ops))))
	choose := func() how {
		if seed < uint64(prefix) {
			return how(seed)
		}
		return how(rng.IntN(int(nHows)))
	}
	out := &Image{inodes: map[uint64]*inode{}, next: live.next}
	for ino, i := range live.inodes {
		c := *i
		c.content = content{}
		if i.dir() {
			c.entries = map[string]uint64{}
		}
		if b := base.inodes[ino]; b != nil {
			c.content, c.entries = b.content.clone(), maps.Clone(b.entries)
		}
		out.inodes[ino] = &c
	}
	bound := survivingNames(ops, choose(), rng, named)
	pending := map[uint64][]*op{}
	var order []uint64 // of pending, so that chance falls the same way each time
	for n := range ops {
		o := &ops[n]
		switch o.kind {
		case Write, Truncate:
			if _, ok := pending[o.ino]; !ok {
				order = append(order, o.ino)
			}
			pending[o.ino] = append(pending[o.ino], o)
		case Sync:
			out.inodes[o.ino].content.survive(pending[o.ino], all, nil)
			pending[o.ino] = nil
		case SyncDir:
		default:
			if n < bound[o.dirs()[0]] {
				o.apply(out)
			}
		}
	}
	for _, ino := range order {
		if left := pending[ino]; len(left) > 0 {
			out.inodes[ino].content.survive(left, choose(), rng)
		}
	}
	out.dropUnreachable()
	return out
}

// survivingNames gives for each directory up to where in the journal its names
// survive. At least what was synced does.
func survivingNames(ops []op, mode how, rng *rand.Rand, named []string) map[uint64]int {
	bound := map[uint64]int{}
	made := map[uint64]int{} // where the files were created whose fsync is enough
	var touched []uint64     // in the order of the journal
	for n := range ops {
		o := &ops[n]
		if o.kind == SyncDir {
			bound[o.ino] = n
		}
		if at, ok := made[o.ino]; ok && o.kind == Sync {
			bound[ops[at].dir] = max(bound[ops[at].dir], at+1)
		}
		if o.kind == Create && slices.ContainsFunc(named, func(end string) bool { return strings.HasSuffix(o.name, end) }) {
			made[o.ino] = n
		}
		for _, d := range o.dirs() {
			if _, ok := bound[d]; !ok {
				bound[d] = 0
			}
			touched = append(touched, d)
		}
	}
	cut := rng.IntN(len(ops) + 1)
	seen := map[uint64]bool{}
	for _, d := range touched {
		if seen[d] {
			continue
		}
		seen[d] = true
		switch mode {
		case all:
			bound[d] = len(ops)
		case prefix:
			bound[d] = max(bound[d], cut)
		case scattered:
			bound[d] += rng.IntN(len(ops) - bound[d] + 1)
		}
	}
	// What changes two directories survives in both or in none, with all that came
	// before it in either.
	for changed := true; changed; {
		changed = false
		for n := range ops {
			ds := ops[n].dirs()
			if len(ds) < 2 || (n < bound[ds[0]]) == (n < bound[ds[1]]) {
				continue
			}
			for _, d := range ds {
				bound[d] = max(bound[d], n+1)
			}
			changed = true
		}
	}
	return bound
}

// survive applies what is left of operations that were not synced.
func (c *content) survive(ops []*op, mode how, rng *rand.Rand) {
	switch mode {
	case none:
		return
	case all:
		c.replay(ops, len(ops), nil)
	case prefix:
		n := rng.IntN(len(ops) + 1)
		c.replay(ops, n, nil)
		if n < len(ops) && ops[n].kind == Write {
			torn := *ops[n]
			torn.data = torn.data[:rng.IntN(len(torn.data)+1)]
			c.replay([]*op{&torn}, 1, nil)
		}
	case scattered:
		c.replay(ops, rng.IntN(len(ops)+1), rng)
	}
}

// replay applies operations. Sizes are those after the first sized ones; with rng
// each page is written up to a moment of its own.
func (c *content) replay(ops []*op, sized int, rng *rand.Rand) {
	upTo := map[int64]int{}
	size := c.size
	for n, o := range ops {
		keep := func(page int64) bool {
			if rng == nil {
				return n < sized
			}
			if _, ok := upTo[page]; !ok {
				upTo[page] = rng.IntN(len(ops) + 1)
			}
			return n < upTo[page]
		}
		if o.kind == Write {
			c.write(o.off, o.data, keep)
		}
		switch {
		case n >= sized:
		case o.kind == Write:
			size = max(size, o.off+int64(len(o.data)))
		default:
			c.truncate(o.size)
			size = o.size
		}
	}
	c.truncate(size)
}

// dropUnreachable removes what no name leads to.
func (m *Image) dropUnreachable() {
	seen := map[uint64]bool{}
	var walk func(ino uint64)
	walk = func(ino uint64) {
		if seen[ino] {
			return
		}
		seen[ino] = true
		for _, child := range m.inodes[ino].entries {
			walk(child)
		}
	}
	walk(rootIno)
	for ino := range m.inodes {
		if !seen[ino] {
			delete(m.inodes, ino)
		}
	}
}

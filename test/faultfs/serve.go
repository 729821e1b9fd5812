package faultfs

import (
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// cached is for how long the kernel may keep names and attributes: for ever,
// since nobody but it changes them.
const cached = time.Hour

func (f *FS) String() string { return "faultfs" }

func (f *FS) attr(ino uint64, out *fuse.Attr) {
	if ino == markIno {
		*out = fuse.Attr{Ino: ino, Mode: syscall.S_IFREG | 0o666, Nlink: 1, Blksize: pageSize}
		return
	}
	i := f.live.inodes[ino]
	*out = fuse.Attr{
		Ino: ino, Mode: i.mode, Nlink: 1, Blksize: pageSize,
		Size: uint64(i.content.size), Blocks: uint64(len(i.content.pages)) * (pageSize / 512),
	}
	out.SetTimes(&i.mtime, &i.mtime, &i.ctime)
}

func (f *FS) entry(ino uint64, out *fuse.EntryOut) {
	out.NodeId, out.Generation = ino, 1
	out.SetEntryTimeout(cached)
	out.SetAttrTimeout(cached)
	f.attr(ino, &out.Attr)
}

// Lookup implements fuse.RawFileSystem, as do all methods below.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.enter(); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	f.counts.Lookups++
	if h.NodeId == rootIno && name == MarkFile {
		f.entry(markIno, out)
		return fuse.OK
	}
	ino, ok := f.live.inodes[h.NodeId].entries[name]
	if !ok {
		return fuse.ENOENT
	}
	f.entry(ino, out)
	return fuse.OK
}

func (f *FS) Forget(uint64, uint64) {}

func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := f.enter(); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	out.SetTimeout(cached)
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	size, sized := in.GetSize()
	begin := f.enter
	if sized && in.NodeId != markIno {
		begin = func() fuse.Status { return f.change(Truncate) }
	}
	if s := begin(); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	if in.NodeId != markIno {
		if sized {
			f.truncate(in.NodeId, int64(size))
		}
		i := f.live.inodes[in.NodeId]
		if mode, ok := in.GetMode(); ok {
			i.mode = i.mode&syscall.S_IFMT | mode&^uint32(syscall.S_IFMT)
			i.ctime = f.clock()
		}
		if at, ok := in.GetMTime(); ok {
			i.mtime, i.ctime = at, f.clock()
		}
	}
	out.SetTimeout(cached)
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// truncate needs the lock, and change before.
func (f *FS) truncate(ino uint64, size int64) {
	f.live.inodes[ino].content.truncate(size)
	f.changed(ino)
	f.note(op{kind: Truncate, ino: ino, size: size})
}

// add makes a new inode under a name.
func (f *FS) add(kind Kind, dir uint64, name string, mode uint32) uint64 {
	ino := f.live.next
	f.live.next++
	i := &inode{mode: mode}
	if kind == Mkdir {
		i.entries = map[string]uint64{}
	}
	f.live.inodes[ino] = i
	f.changed(ino)
	f.name(op{kind: kind, ino: ino, dir: dir, name: name})
	return ino
}

// name does what an operation on names does.
func (f *FS) name(o op) {
	o.apply(f.live)
	for _, d := range o.dirs() {
		f.changed(d)
	}
	f.note(o)
}

func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.change(Mkdir); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	if _, ok := f.live.inodes[in.NodeId].entries[name]; ok {
		return fuse.Status(syscall.EEXIST)
	}
	f.entry(f.add(Mkdir, in.NodeId, name, syscall.S_IFDIR|in.Mode&0o7777), out)
	return fuse.OK
}

func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := f.change(Create); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	if _, ok := f.live.inodes[in.NodeId].entries[name]; ok {
		return fuse.Status(syscall.EEXIST) // the kernel has looked before
	}
	f.counts.Opens++
	f.entry(f.add(Create, in.NodeId, name, syscall.S_IFREG|in.Mode&0o7777), &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.change(Link); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	if _, ok := f.live.inodes[in.NodeId].entries[name]; ok {
		return fuse.Status(syscall.EEXIST)
	}
	f.name(op{kind: Link, ino: in.Oldnodeid, dir: in.NodeId, name: name})
	f.entry(in.Oldnodeid, out)
	return fuse.OK
}

func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := f.change(Unlink); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	ino, ok := f.live.inodes[h.NodeId].entries[name]
	if !ok {
		return fuse.ENOENT
	}
	f.name(op{kind: Unlink, ino: ino, dir: h.NodeId, name: name})
	return fuse.OK
}

func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := f.change(Rmdir); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	ino, ok := f.live.inodes[h.NodeId].entries[name]
	if !ok {
		return fuse.ENOENT
	}
	if len(f.live.inodes[ino].entries) > 0 {
		return fuse.Status(syscall.ENOTEMPTY)
	}
	f.name(op{kind: Rmdir, ino: ino, dir: h.NodeId, name: name})
	return fuse.OK
}

// renameNoReplace is RENAME_NOREPLACE; the others are refused.
const renameNoReplace = 1

func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, toName string) fuse.Status {
	if in.Flags&^renameNoReplace != 0 {
		return fuse.EINVAL
	}
	if s := f.change(Rename); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	ino, ok := f.live.inodes[in.NodeId].entries[name]
	if !ok {
		return fuse.ENOENT
	}
	if old, ok := f.live.inodes[in.Newdir].entries[toName]; ok {
		if in.Flags&renameNoReplace != 0 {
			return fuse.Status(syscall.EEXIST)
		}
		if len(f.live.inodes[old].entries) > 0 {
			return fuse.Status(syscall.ENOTEMPTY)
		}
	}
	f.name(op{kind: Rename, ino: ino, dir: in.NodeId, name: name, toDir: in.Newdir, toName: toName})
	f.live.inodes[ino].ctime = f.clock()
	return fuse.OK
}

func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	truncates := in.Flags&syscall.O_TRUNC != 0 && in.NodeId != markIno
	begin := f.enter
	if truncates {
		begin = func() fuse.Status { return f.change(Truncate) }
	}
	if s := begin(); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	if in.NodeId == markIno {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	f.counts.Opens++
	if truncates {
		f.truncate(in.NodeId, 0)
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if s := f.enter(); !s.Ok() {
		return nil, s
	}
	defer f.mu.Unlock()
	if in.NodeId == markIno {
		return fuse.ReadResultData(nil), fuse.OK
	}
	f.counts.Reads++
	n := f.live.inodes[in.NodeId].content.read(buf, int64(in.Offset))
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if in.NodeId == markIno {
		if s := f.enter(); !s.Ok() {
			return 0, s
		}
		defer f.mu.Unlock()
		f.marks = append(f.marks, Mark{len(f.ops), string(data)})
		return uint32(len(data)), fuse.OK
	}
	if s := f.change(Write); !s.Ok() {
		return 0, s
	}
	defer f.mu.Unlock()
	data = slices.Clone(data) // the buffer is used again
	off, c := int64(in.Offset), &f.live.inodes[in.NodeId].content
	c.write(off, data, nil)
	c.size = max(c.size, off+int64(len(data)))
	f.changed(in.NodeId)
	f.note(op{kind: Write, ino: in.NodeId, off: off, data: data})
	return uint32(len(data)), fuse.OK
}

func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode != 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	if s := f.change(Truncate); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	if end := int64(in.Offset + in.Length); end > f.live.inodes[in.NodeId].content.size {
		f.truncate(in.NodeId, end)
	}
	return fuse.OK
}

func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (f *FS) Release(<-chan struct{}, *fuse.ReleaseIn) {}

func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := f.change(Sync); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	f.note(op{kind: Sync, ino: in.NodeId})
	return fuse.OK
}

func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := f.change(SyncDir); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	f.note(op{kind: SyncDir, ino: in.NodeId})
	return fuse.OK
}

func (f *FS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	if s := f.enter(); !s.Ok() {
		return s
	}
	f.mu.Unlock()
	return fuse.OK
}

// ReadDir gives names by inode, so that one that goes while a reader is half way
// moves no other. Two names of one file in a directory may be cut apart only
// where one answer is full, which no test here comes to.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := f.enter(); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	f.counts.DirReads++
	entries := f.live.inodes[in.NodeId].entries
	type named struct {
		name string
		ino  uint64
	}
	var list []named
	for name, ino := range entries {
		if ino >= in.Offset {
			list = append(list, named{name, ino})
		}
	}
	slices.SortFunc(list, func(a, b named) int { return int(a.ino) - int(b.ino) })
	for _, e := range list {
		if !out.AddDirEntry(fuse.DirEntry{Name: e.name, Ino: e.ino, Mode: f.live.inodes[e.ino].mode, Off: e.ino + 1}) {
			break
		}
	}
	return fuse.OK
}

func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if s := f.enter(); !s.Ok() {
		return s
	}
	defer f.mu.Unlock()
	free := uint64(f.Free) / pageSize
	*out = fuse.StatfsOut{Bsize: pageSize, Frsize: pageSize, Blocks: 2 * free, Bfree: free, Bavail: free, Ffree: 1 << 30, NameLen: 255}
	return fuse.OK
}

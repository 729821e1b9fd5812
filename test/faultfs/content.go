package faultfs

import "maps"

const pageSize = 4096

// content is the bytes of a file. Pages are replaced, never changed, so that
// copies share them; one that is missing reads as zeros.
type content struct {
	size  int64
	pages map[int64]*[pageSize]byte
}

func (c *content) clone() content { return content{c.size, maps.Clone(c.pages)} }

// write puts data at off into the pages that keep wants (nil: all) and leaves
// the size alone.
func (c *content) write(off int64, data []byte, keep func(page int64) bool) {
	if c.pages == nil {
		c.pages = map[int64]*[pageSize]byte{}
	}
	for len(data) > 0 {
		page, at := off/pageSize, off%pageSize
		n := min(int64(len(data)), pageSize-at)
		if keep == nil || keep(page) {
			p := new([pageSize]byte)
			if old := c.pages[page]; old != nil && n < pageSize {
				*p = *old
			}
			copy(p[at:], data[:n])
			c.pages[page] = p
		}
		off, data = off+n, data[n:]
	}
}

// truncate sets the size: what lies behind it is gone, also after it grows again.
func (c *content) truncate(size int64) {
	for page := range c.pages {
		if page*pageSize >= size {
			delete(c.pages, page)
		}
	}
	if at := size % pageSize; at > 0 {
		if old := c.pages[size/pageSize]; old != nil {
			p := *old
			clear(p[at:])
			c.pages[size/pageSize] = &p
		}
	}
	c.size = size
}

// read fills b from off on and says how much there was.
func (c *content) read(b []byte, off int64) int {
	n := 0
	for n < len(b) && off < c.size {
		at := off % pageSize
		k := int(min(int64(len(b)-n), pageSize-at, c.size-off))
		if p := c.pages[off/pageSize]; p != nil {
			copy(b[n:n+k], p[at:])
		} else {
			clear(b[n : n+k])
		}
		n, off = n+k, off+int64(k)
	}
	return n
}

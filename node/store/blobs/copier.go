package blobs

import "runtime"

// besideMin is the smallest piece that is hashed beside the writing of the next
// one: to wake another goroutine for less costs more than it gains.
const besideMin = 64 << 10

// copier takes an append's pieces to file and hash. A piece is hashed while the
// next one is read and written, if the machine has a processor to spare for
// that: an upload alone is then as slow as its slower half and not as both.
// Where uploads keep all processors busy, each does its own work in turn.
//
// The hash never has a byte that the file has not. Between [copier.settle] and
// the next take both have the same.
type copier struct {
	u    *Upload
	size int64  // of the file
	buf  []byte // what the next piece is read into

	other  *[]byte    // the second buffer's place in the pool, from when it is first needed
	idle   []byte     // what the piece before was in
	back   func()     // gives the first buffer back
	hashed chan error // of the one piece under way
	busy   bool       // there is one
}

func (u *Upload) copier() *copier {
	c := &copier{u: u, size: u.hasher.Size()}
	c.buf, c.back = u.s.buffer()
	return c
}

// room is what the next piece is to be read into: the whole buffer, or less if
// the file stands beside a border of buffers. The system copies whole pages
// faster than parts of two.
func (c *copier) room() []byte { return c.buf[:len(c.buf)-int(c.size%int64(len(c.buf)))] }

// take appends the first k bytes of buf, which is another one afterwards.
func (c *copier) take(k int) error {
	b := c.buf[:k]
	if err := c.u.put(b, c.size); err != nil {
		return err
	}
	c.size += int64(k)
	if err := c.settle(); err != nil {
		return err
	}
	if k < besideMin || !c.spare() {
		_, err := c.u.hasher.Write(b)
		return err
	}
	if c.hashed == nil {
		c.hashed = make(chan error, 1)
		c.other = c.u.s.bufs.Get().(*[]byte)
		c.idle = *c.other
	}
	c.busy = true
	go func() {
		_, err := c.u.hasher.Write(b)
		c.hashed <- err
	}()
	c.buf, c.idle = c.idle, c.buf
	return nil
}

// spare reports whether there are two processors for each append under way. One
// that waits for its client counts too: to follow who is really at work would take
// a lock for each piece, and what is lost is only the second processor's help
// while clients are slow.
func (c *copier) spare() bool { return 2*len(c.u.s.busy) <= runtime.GOMAXPROCS(0) }

// settle waits until the hash has all that the file has.
func (c *copier) settle() error {
	if !c.busy {
		return nil
	}
	c.busy = false
	return <-c.hashed
}

// end settles and gives the buffers back.
func (c *copier) end() error {
	err := c.settle()
	if c.other != nil {
		c.u.s.bufs.Put(c.other)
	}
	c.back()
	return err
}

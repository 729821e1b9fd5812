//go:build !linux

package peer

import "net"

// kernelReader is for Linux.
type kernelReader struct{}

func (*kernelReader) of(net.Conn) {}

func (*kernelReader) there() bool { return false }

func (*kernelReader) read(int) (*[wireBuffer]byte, int, error) { return nil, 0, net.ErrClosed }

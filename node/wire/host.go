package wire

import (
	"net"
	"net/netip"
)

// HostAddress is the address of this machine that other machines most likely
// reach: the first IPv4 address of an interface that is up, loopback and
// link-local ones left out; then IPv6 likewise; 127.0.0.1 if there is none.
func HostAddress() netip.Addr {
	fallback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	ifaces, err := net.Interfaces()
	if err != nil {
		return fallback
	}
	var v6 netip.Addr
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			ip := p.Addr().Unmap()
			switch {
			case !ip.IsGlobalUnicast():
			case ip.Is4():
				return ip
			case !v6.IsValid():
				v6 = ip
			}
		}
	}
	if v6.IsValid() {
		return v6
	}
	return fallback
}

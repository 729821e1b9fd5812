package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
)

// ListenError puts the failure to listen on addr ("host:port") into a sentence
// that names the port and the option that changes it ("--control-port"). Every
// port of a node reports its trouble through it. A nil err stays nil.
func ListenError(addr, option string, err error) error {
	if err == nil {
		return nil
	}
	host, port, splitErr := net.SplitHostPort(addr)
	if splitErr != nil {
		return fmt.Errorf("%q is not an address of the form host:port: correct %s", addr, option)
	}
	if host == "" {
		host = "all addresses"
	}
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return &PortError{Port: port, Option: option, Err: err,
			text: fmt.Sprintf("port %s on %s is in use: stop what uses it or choose another with %s", port, host, option)}
	case errors.Is(err, fs.ErrPermission):
		return &PortError{Port: port, Option: option, Err: err,
			text: fmt.Sprintf("port %s on %s needs rights that this process has not: choose one above 1023 with %s", port, host, option)}
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.As(err, &dns):
		return &PortError{Port: port, Option: option, Err: err,
			text: fmt.Sprintf("cannot listen on %s: no interface of this machine has the address %s; choose another with %s", addr, host, bindOption(option))}
	default:
		return &PortError{Port: port, Option: option, Err: err,
			text: fmt.Sprintf("cannot listen on %s (%s): %v", addr, option, err)}
	}
}

// bindOption names the option that holds the address part: the HTTP address is
// one option, the other ports share --bind.
func bindOption(option string) string {
	if option == "--http" {
		return option
	}
	return "--bind"
}

// PortError is what [ListenError] makes; Unwrap gives the system's error.
type PortError struct {
	Port, Option string
	Err          error
	text         string
}

func (e *PortError) Error() string { return e.text }
func (e *PortError) Unwrap() error { return e.Err }

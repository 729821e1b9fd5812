package access

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// DefaultProject is what a name of a single component is in.
const DefaultProject = "library"

// MaxNameBytes bounds a repository's full name, as clients do.
const MaxNameBytes = 255

// nameRegexp is distribution's grammar of a name, without the part that may
// name a host: that one is taken off before.
var nameRegexp = func() *regexp.Regexp {
	component := `[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*`
	return regexp.MustCompile(`^` + component + `(?:/` + component + `)*$`)
}()

// ErrName is wrapped by what Canonical returns.
var ErrName = errors.New("repository name")

// Canonical gives the one form of a repository's name, project and path below
// it: "alpine" is library/alpine, and so is "host/alpine" where host is the
// one that the request was sent to. It comes before every decision, so that no
// two spellings of a name can have different rights.
func (a *Access) Canonical(r *http.Request, name string) (project, repo string, err error) {
	if len(name) > MaxNameBytes {
		return "", "", fmt.Errorf("%w of %d characters: %d are the most", ErrName, len(name), MaxNameBytes)
	}
	if first, rest, ok := strings.Cut(name, "/"); ok && strings.ContainsAny(first, ".:") && strings.EqualFold(first, a.host(r)) {
		// A project may have a dotted name too; where there is one, it is meant.
		if _, taken := a.cfg.View().Project(first); !taken {
			name = rest
		}
	}
	if !nameRegexp.MatchString(name) {
		return "", "", fmt.Errorf("%w %q is not allowed: lower-case letters and digits, with . _ __ or - between them, and / between components", ErrName, name)
	}
	project, repo, ok := strings.Cut(name, "/")
	if !ok {
		project, repo = DefaultProject, name
	}
	if len(project)+1+len(repo) > MaxNameBytes {
		return "", "", fmt.Errorf("%w of %d characters: %d are the most", ErrName, len(project)+1+len(repo), MaxNameBytes)
	}
	return project, repo, nil
}

var hostRegexp = regexp.MustCompile(`^` + reference.DomainRegexp.String() + `$`)

// trusted reports whether the connection comes from a trusted proxy.
func (a *Access) trusted(r *http.Request) bool {
	addr, ok := peerAddr(r)
	return ok && a.isProxy(addr)
}

func (a *Access) isProxy(addr netip.Addr) bool {
	for _, p := range a.cfg.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func peerAddr(r *http.Request) (netip.Addr, bool) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false
	}
	return ap.Addr().Unmap().WithZone(""), true
}

// host is the name that the client used, port included.
func (a *Access) host(r *http.Request) string {
	if a.trusted(r) {
		// Proxies append: the first is the one that the client sent.
		h, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Host"), ",")
		if h = strings.TrimSpace(h); hostRegexp.MatchString(h) {
			return h
		}
	}
	return r.Host
}

// ExternalURL is scheme and host as the client of r sees them, without a slash
// at the end.
func (a *Access) ExternalURL(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if a.trusted(r) {
		p, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
		if p = strings.ToLower(strings.TrimSpace(p)); p == "http" || p == "https" {
			scheme = p
		}
	}
	return scheme + "://" + a.host(r)
}

// ClientAddr is the address that the request comes from: the nearest one that
// is no trusted proxy.
func (a *Access) ClientAddr(r *http.Request) netip.Addr {
	addr, ok := peerAddr(r)
	if !ok {
		return netip.Addr{}
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && a.isProxy(addr); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = next.Unmap().WithZone("")
	}
	return addr
}

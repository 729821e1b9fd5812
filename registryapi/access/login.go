package access

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Login checks a name and a password for the client of r. Its errors are
// ErrCredentials and *TooMany.
func (a *Access) Login(r *http.Request, name, password string) (Subject, error) {
	user, known := a.cfg.View().User(name)
	hash := a.decoy
	if known {
		hash = user.PasswordHash
	}
	key := a.checkKey(user.ID, hash, password)
	subject := Subject{Kind: User, UserID: user.ID, Name: user.Name, Admin: user.Admin}

	// A remembered success comes before every bound: whoever guesses at an
	// account from the same address must not shut its owner's clients out.
	if until, ok := a.checked.Get(key); ok && known {
		if a.cfg.Now().Before(until) {
			a.logins.WithLabelValues("remembered").Inc()
			return subject, nil
		}
		a.checked.Remove(key)
	}
	fk := failureKey{account: clipAccount(name), addr: failureAddr(a.ClientAddr(r))}
	if wait := a.failures.wait(fk, a.cfg.Now()); wait > 0 {
		a.logins.WithLabelValues("throttled").Inc()
		return Subject{}, &TooMany{Reason: "too many failed logins for this account from this address", RetryAfter: wait}
	}

	// The same credentials asked at the same moment (a client's parallel
	// requests) are one check.
	v, err, _ := a.flights.Do(string(key[:]), func() (any, error) { return a.check(hash, password) })
	if errors.Is(err, ErrPasswordHash) {
		a.cfg.Logger.Error("login impossible", slog.String("user", clipAccount(name)), slog.Any("error", err))
		return Subject{}, ErrCredentials
	}
	if err != nil {
		a.logins.WithLabelValues("busy").Inc()
		return Subject{}, err
	}
	if ok := v.(bool); !ok || !known {
		a.logins.WithLabelValues("refused").Inc()
		wait := a.failures.add(fk, a.cfg.Now())
		a.cfg.Logger.Warn("login refused", slog.String("user", clipAccount(name)), slog.String("address", a.ClientAddr(r).String()), slog.Duration("wait", wait))
		return Subject{}, ErrCredentials
	}
	a.logins.WithLabelValues("checked").Inc()
	a.failures.clear(fk)
	a.checked.Add(key, a.cfg.Now().Add(checkedFor))
	return subject, nil
}

// check runs one password check within the bounds.
func (a *Access) check(hash, password string) (bool, error) {
	select {
	case a.queue <- struct{}{}:
	default:
		return false, &TooMany{Reason: "this node is checking as many passwords as it can", RetryAfter: busyRetry}
	}
	defer func() { <-a.queue }()
	a.slots <- struct{}{} // bounded by the queue: a few hundred milliseconds
	defer func() { <-a.slots }()
	return VerifyPassword(hash, password)
}

// checkKey names a successful check. The stored hash is part of it: with a new
// password the old success is not found any more.
func (a *Access) checkKey(user int64, hash, password string) [32]byte {
	m := hmac.New(sha256.New, a.cacheKey[:])
	var n [16]byte
	binary.BigEndian.PutUint64(n[:8], uint64(user))
	binary.BigEndian.PutUint64(n[8:], uint64(len(hash)))
	m.Write(n[:])
	m.Write([]byte(hash))
	m.Write([]byte(password))
	return [32]byte(m.Sum(nil))
}

const (
	// cachedFailures bounds how many pairs of account and address are watched.
	cachedFailures = 16384
	// freeFailures are forgiven: people mistype.
	freeFailures = 5
	// firstWait doubles with every further failure up to longestWait.
	firstWait   = time.Second
	longestWait = time.Minute
	// forgetAfter without a failure the pair starts anew.
	forgetAfter = 15 * time.Minute
)

type failureKey struct {
	account string
	addr    netip.Addr
}

// clipAccount bounds what a client may make this node remember and log: a
// header's worth of name, times cachedFailures, would be a gigabyte. No user has
// a longer name.
func clipAccount(name string) string {
	if len(name) > MaxNameBytes {
		name = name[:MaxNameBytes]
	}
	return strings.Clone(strings.ToLower(name))
}

// failureAddr is whom an address stands for: an IPv6 client has a whole /64 to
// guess from.
func failureAddr(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return addr
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return addr
	}
	return p.Addr()
}

type failure struct {
	n     int
	last  time.Time
	until time.Time
}

// failures makes the pair of account and address wait after wrong passwords.
// Neither alone is enough: by account, anybody could lock anybody out; by
// address, a whole office would wait for one.
type failures struct {
	mu sync.Mutex
	by *lru.Cache[failureKey, *failure]
}

func (f *failures) wait(k failureKey, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.by.Get(k)
	if !ok || !now.Before(e.until) {
		return 0
	}
	return e.until.Sub(now)
}

func (f *failures) add(k failureKey, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.by.Get(k)
	if !ok || now.Sub(e.last) > forgetAfter {
		e = &failure{}
		f.by.Add(k, e)
	}
	e.n++
	e.last = now
	if e.n < freeFailures {
		return 0
	}
	wait := longestWait
	if shift := e.n - freeFailures; shift < 6 {
		wait = min(firstWait<<shift, longestWait)
	}
	e.until = now.Add(wait)
	return wait
}

func (f *failures) clear(k failureKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.by.Remove(k)
}

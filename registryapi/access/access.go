package access

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// Config is what New needs.
type Config struct {
	// View gives the control state as this node has it now.
	View func() *state.View
	// Identity signs the tokens that this node gives out.
	Identity *identity.Identity
	// Logger takes notice of refused logins.
	Logger *slog.Logger
	// Now judges the lifetime of tokens; nil is time.Now.
	Now func() time.Time
	// TrustedProxies may say, by X-Forwarded-*, which host, scheme and client
	// a request really has. Nobody else is believed.
	TrustedProxies []netip.Prefix
	// Metrics takes the counters; nil: none are published.
	Metrics prometheus.Registerer
}

// Access decides who is asking and what they may do. See the package comment.
type Access struct {
	cfg   Config
	slots chan struct{} // password checks running
	queue chan struct{} // password checks running or waiting

	cacheKey [32]byte // of this process alone: what is cached is worth nothing elsewhere
	checked  *lru.Cache[[32]byte, time.Time]
	flights  singleflight.Group

	failures failures
	logins   *prometheus.CounterVec
	tokens   *lru.Cache[[32]byte, *claims]

	// decoy is checked when there is no such user, so that the answer takes as
	// long as for a wrong password.
	decoy string
}

const (
	// cachedChecks and cachedTokens bound two caches; 64 bytes and about a
	// kilobyte an entry.
	cachedChecks = 8192
	cachedTokens = 4096
	// checkedFor is how long a checked password is taken without checking it
	// again. A change of the stored hash ends it at once.
	checkedFor = 5 * time.Minute
	// waitersPerCore bounds how many password checks wait for a core: at some
	// 20 ms a check nobody waits much longer than half a second.
	waitersPerCore = 24
	// busyRetry is what a client that found the queue full is told to wait.
	busyRetry = 2 * time.Second
)

// New makes an Access.
func New(cfg Config) (*Access, error) {
	if cfg.View == nil || cfg.Identity == nil {
		return nil, errors.New("access: View and Identity are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cores := runtime.GOMAXPROCS(0)
	a := &Access{
		cfg:   cfg,
		slots: make(chan struct{}, cores),
		queue: make(chan struct{}, cores*(1+waitersPerCore)),
	}
	_, _ = rand.Read(a.cacheKey[:]) // never fails (Go 1.24)
	var err error
	if a.checked, err = lru.New[[32]byte, time.Time](cachedChecks); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	if a.tokens, err = lru.New[[32]byte, *claims](cachedTokens); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	if a.failures.by, err = lru.New[failureKey, *failure](cachedFailures); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	a.logins = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "portolan_registryapi_logins_total", Help: "Checks of name and password, by outcome: checked, remembered, refused, throttled (after failures), busy (too many at once).",
	}, []string{"outcome"})
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(a.logins); err != nil {
			return nil, fmt.Errorf("access: register metrics: %w", err)
		}
	}
	random := make([]byte, argonSaltBytes+argonKeyBytes)
	_, _ = rand.Read(random)
	a.decoy = formatPHC(random[:argonSaltBytes], random[argonSaltBytes:])
	return a, nil
}

// Secret derives a key of this node's own for a purpose. It is the same after a
// restart, and nobody without the node's key can know it.
func (a *Access) Secret(purpose string) [32]byte {
	return sha256.Sum256(a.cfg.Identity.Sign([]byte("portolan secret\x00" + purpose)))
}

// Kind says what sort of subject is asking.
type Kind int

const (
	// Anonymous gave no credentials.
	Anonymous Kind = iota
	// User is a local user of the mesh.
	User
)

// Subject is who is asking. The zero value is anonymous.
type Subject struct {
	Kind   Kind
	UserID int64
	Name   string
	// Admin marks a system administrator, as of this request.
	Admin bool
	// Scope is set if the subject came with a registry token: then nothing
	// outside of it is allowed, and nothing but repositories at all.
	Scope *Scope
}

// Actor is the subject's form in commands, catalogue entries and logs.
func (s Subject) Actor() string {
	if s.Kind == Anonymous {
		return "anonymous"
	}
	return "user:" + s.Name
}

var (
	// ErrCredentials is returned for a wrong name or a wrong password; which of
	// the two is nobody's business.
	ErrCredentials = errors.New("wrong user name or password: check them and log in again")
	// ErrToken is returned for a token that this node does not take.
	ErrToken = errors.New("the registry token is not valid here: log in again")
	// ErrScheme is returned for an Authorization header of an unknown form.
	ErrScheme = errors.New("the Authorization header is not understood: use Basic, or Bearer for /v2/")
)

// TooMany refuses a login that was not even tried.
type TooMany struct {
	Reason     string
	RetryAfter time.Duration
}

func (e *TooMany) Error() string {
	return fmt.Sprintf("%s: try again in %s", e.Reason, e.RetryAfter.Round(time.Second))
}

// Authenticate says who is asking by basic authentication; no Authorization
// header is anonymous. Registry tokens are refused: they are for /v2 alone.
// The errors are ErrCredentials, ErrScheme, ErrToken and *TooMany.
func (a *Access) Authenticate(r *http.Request) (Subject, error) {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case scheme == "":
		return Subject{}, nil
	case strings.EqualFold(scheme, "basic"):
		name, password, ok := r.BasicAuth()
		if !ok {
			return Subject{}, ErrScheme
		}
		return a.Login(r, name, password)
	case strings.EqualFold(scheme, "bearer"):
		return Subject{}, ErrToken
	}
	return Subject{}, ErrScheme
}

// AuthenticateRegistry is Authenticate for /v2: tokens are taken too.
func (a *Access) AuthenticateRegistry(r *http.Request) (Subject, error) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "bearer") {
		return a.verifyToken(strings.TrimSpace(rest))
	}
	return a.Authenticate(r)
}

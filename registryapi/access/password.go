package access

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// The cost of a password check: OWASP's second recommendation for argon2id.
// 19 MiB per check keeps a node with every core busy checking below the memory
// that an idle node may take.
const (
	argonMemoryKiB = 19 * 1024
	argonTime      = 2
	argonThreads   = 1
	argonKeyBytes  = 32
	argonSaltBytes = 16
)

// What a stored hash may ask of this node: the hash comes from the replicated
// state, where an administrator may have put one that was made elsewhere.
const (
	maxArgonMemoryKiB = 256 * 1024
	maxArgonTime      = 16
	maxArgonThreads   = 16
)

// MaxPasswordBytes bounds what is hashed: longer input buys no strength and
// costs the one who checks it.
const MaxPasswordBytes = 1024

// ErrPasswordHash is returned for a stored hash that cannot be read.
var ErrPasswordHash = errors.New("the stored password hash cannot be read: set the password anew")

// HashPassword makes the PHC string that the replicated state keeps.
func HashPassword(password string) (string, error) {
	if password == "" {
		return "", errors.New("the password is empty: give one")
	}
	if len(password) > MaxPasswordBytes {
		return "", fmt.Errorf("the password has %d bytes: %d are the most", len(password), MaxPasswordBytes)
	}
	salt := make([]byte, argonSaltBytes)
	_, _ = rand.Read(salt) // never fails (Go 1.24)
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemoryKiB, argonThreads, argonKeyBytes)
	return formatPHC(salt, key), nil
}

func formatPHC(salt, key []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemoryKiB, argonTime, argonThreads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}

// VerifyPassword reports whether password is the one that phc was made of. It
// takes tens of milliseconds of one core: requests go through
// [Access.Authenticate], which bounds how many run.
func VerifyPassword(phc, password string) (bool, error) {
	h, err := parsePHC(phc)
	if err != nil {
		return false, err
	}
	if len(password) > MaxPasswordBytes {
		return false, nil
	}
	key := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(key, h.key) == 1, nil
}

type phcHash struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func parsePHC(s string) (phcHash, error) {
	var h phcHash
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, ErrPasswordHash
	}
	var m, t, p uint32
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &m, &t, &p); err != nil || n != 3 ||
		parts[3] != fmt.Sprintf("m=%d,t=%d,p=%d", m, t, p) {
		return h, ErrPasswordHash
	}
	if m < 8*p || m > maxArgonMemoryKiB || t < 1 || t > maxArgonTime || p < 1 || p > maxArgonThreads {
		return h, ErrPasswordHash
	}
	var err error
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil || len(h.salt) < 8 || len(h.salt) > 64 {
		return h, ErrPasswordHash
	}
	if h.key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(h.key) < 16 || len(h.key) > 64 {
		return h, ErrPasswordHash
	}
	h.memory, h.time, h.threads = m, t, uint8(p)
	return h, nil
}

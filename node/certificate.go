package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// certificateEvery is how often the files of the certificate are looked at. A
// renewal is due weeks before the old one ends; seconds make it visible to
// whoever has just replaced it.
const certificateEvery = 5 * time.Second

// certificate is the registry's TLS certificate. New files are taken over
// without touching connections; files that do not fit together (they are
// replaced one after the other) are left alone until they do.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               atomic.Pointer[tls.Certificate]
	cert, key         []byte // what now was made of; only load and run
}

func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if _, err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// load takes the files over if they are new and good.
func (c *certificate) load() (changed bool, err error) {
	cert, err := os.ReadFile(c.certFile)
	if err != nil {
		return false, fmt.Errorf("the certificate can't be read: %w: correct --tls-cert", err)
	}
	key, err := os.ReadFile(c.keyFile)
	if err != nil {
		return false, fmt.Errorf("the certificate's key can't be read: %w: correct --tls-key", err)
	}
	if bytes.Equal(cert, c.cert) && bytes.Equal(key, c.key) {
		return false, nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return false, fmt.Errorf("%s and %s are no certificate and its key: %w: name PEM files that belong together", c.certFile, c.keyFile, err)
	}
	c.now.Store(&pair)
	c.cert, c.key = cert, key
	return true, nil
}

// run looks for new files until ctx ends.
func (c *certificate) run(ctx context.Context) error {
	tick := time.NewTicker(certificateEvery)
	defer tick.Stop()
	last := "" // trouble is told once, not every few seconds
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := c.load()
		switch {
		case err != nil && err.Error() != last:
			last = err.Error()
			c.log.Warn("the certificate is not renewed, the old one stays in use", "error", err)
		case err == nil:
			last = ""
			if changed {
				c.log.Info("the certificate was renewed", "file", c.certFile)
			}
		}
	}
}

// config is for the registry's listener. HTTP/2 and HTTP/1.1; docker and
// containerd speak TLS 1.2 and later.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now.Load(), nil },
	}
}

package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	clock             func() time.Time
	now               atomic.Pointer[tls.Certificate]
	ends              prometheus.Gauge
	cert, key         []byte // what now was made of; only load and run
}

func newCertificate(certFile, keyFile string, log *slog.Logger, clock func() time.Time) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, clock: clock,
		ends: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "portolan_node_certificate_end_timestamp_seconds",
			Help: "When the registry's TLS certificate, the one in use, ends; Unix seconds.",
		})}
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
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return false, fmt.Errorf("%s can't be read: %w: name a PEM file with an X.509 certificate", c.certFile, err)
	}
	now := c.clock()
	if old := c.now.Load(); old != nil && now.After(leaf.NotAfter) && now.Before(old.Leaf.NotAfter) {
		return false, fmt.Errorf("the new certificate in %s ended at %s: put one there that is in force", c.certFile, leaf.NotAfter.Format(time.RFC3339))
	}
	pair.Leaf = leaf
	c.now.Store(&pair)
	c.ends.Set(float64(leaf.NotAfter.Unix()))
	c.cert, c.key = cert, key
	return true, nil
}

// expiryWarning is how long before its end a certificate is spoken of: what
// renews it has tried for weeks by then.
const expiryWarning = 14 * 24 * time.Hour

// trouble says that the certificate's end is near, in words that change from day
// to day; empty if it is not.
func (c *certificate) trouble() string {
	end := c.now.Load().Leaf.NotAfter
	switch left := end.Sub(c.clock()); {
	case left <= 0:
		return "the registry's TLS certificate has ended: clients refuse it, put a new one into its files"
	case left < expiryWarning:
		return fmt.Sprintf("the registry's TLS certificate ends in %d days: put a new one into its files", int(left/(24*time.Hour)))
	}
	return ""
}

// run looks for new files until ctx ends.
func (c *certificate) run(ctx context.Context) error {
	tick := time.NewTicker(certificateEvery)
	defer tick.Stop()
	last, warned := "", "" // trouble is told once, not every few seconds
	for {
		if w := c.trouble(); w != warned {
			if warned = w; w != "" {
				c.log.Warn(w, "file", c.certFile, "end", c.now.Load().Leaf.NotAfter)
			}
		}
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

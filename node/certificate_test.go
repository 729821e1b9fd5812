package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// writeCertificate makes a certificate with a serial number of its own.
func writeCertificate(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	writeCertificateUntil(t, certFile, keyFile, serial, time.Now().Add(time.Hour))
}

func writeCertificateUntil(t *testing.T, certFile, keyFile string, serial int64, end time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "registry"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func serial(t *testing.T, c *certificate) int64 {
	t.Helper()
	pair, err := c.config().GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Int64()
}

func TestCertificate_IsRenewedOnlyWhole(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	writeCertificate(t, certFile, keyFile, 1)
	c, err := newCertificate(certFile, keyFile, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := c.load(); changed || err != nil {
		t.Errorf("the same files: changed %v, error %v", changed, err)
	}

	// Half of the new pair is there: the old one stays.
	writeCertificate(t, certFile, filepath.Join(dir, "new key"), 2)
	if changed, err := c.load(); changed || err == nil {
		t.Errorf("a certificate without its key: changed %v, error %v", changed, err)
	}
	if got := serial(t, c); got != 1 {
		t.Errorf("certificate %d is in use, want the old one", got)
	}
	if err := os.Rename(filepath.Join(dir, "new key"), keyFile); err != nil {
		t.Fatal(err)
	}
	if changed, err := c.load(); !changed || err != nil {
		t.Errorf("the whole new pair: changed %v, error %v", changed, err)
	}
	if got := serial(t, c); got != 2 {
		t.Errorf("certificate %d is in use, want the new one", got)
	}
}

func TestCertificate_BadFilesSayWhichOption(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	writeCertificate(t, certFile, keyFile, 1)
	for _, bad := range []struct{ cert, key, says string }{
		{filepath.Join(dir, "none"), keyFile, "--tls-cert"},
		{certFile, filepath.Join(dir, "none"), "--tls-key"},
		{keyFile, certFile, "belong together"},
	} {
		if _, err := newCertificate(bad.cert, bad.key, slog.New(slog.DiscardHandler), time.Now); err == nil || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%s and %s: %v", bad.cert, bad.key, err)
		}
	}
}

// What ends soon is spoken of, by log and metric; what has ended is not taken
// over from one that is in force.
func TestCertificate_Expiry(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	end := time.Now().Add(90 * 24 * time.Hour).Truncate(time.Second)
	writeCertificateUntil(t, certFile, keyFile, 1, end)
	now := time.Now()
	c, err := newCertificate(certFile, keyFile, slog.New(slog.DiscardHandler), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	if got := testutil.ToFloat64(c.ends); got != float64(end.Unix()) {
		t.Errorf("the metric says %f, want %d", got, end.Unix())
	}
	for left, want := range map[time.Duration]string{
		90 * 24 * time.Hour: "", expiryWarning: "", 3*24*time.Hour + time.Hour: "ends in 3 days", time.Hour: "ends in 0 days", -time.Second: "has ended",
	} {
		now = end.Add(-left)
		if got := c.trouble(); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s before the end: %q, want %q", left, got, want)
		}
	}
	now = time.Now()
	writeCertificateUntil(t, certFile, keyFile, 2, now.Add(-time.Hour))
	if changed, err := c.load(); changed || err == nil || !strings.Contains(err.Error(), "in force") {
		t.Errorf("one that has ended: changed %v, error %v", changed, err)
	}
	if got := serial(t, c); got != 1 {
		t.Errorf("certificate %d is in use, want the old one", got)
	}
}

package mesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"sync"
	"testing"
	"time"
)

// goodput is the rate of some plain TLS flows from one site to another, in
// bytes a second.
func (m *farMesh) goodput(t *testing.T, from, to, flows int) float64 {
	t.Helper()
	const warm, count = 2 * time.Second, 4 * time.Second
	cert := selfSigned(t)
	start := time.Now()
	var wg sync.WaitGroup
	sums := make([]int64, flows)
	for i := range flows {
		l := m.lab.Listen(m.sites[to].site)
		raw, err := m.lab.Dialer(m.sites[from].site)(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		end := start.Add(warm + count)
		_ = raw.SetDeadline(end)
		_ = in.SetDeadline(end)
		out := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) // #nosec G402 -- an emulated wire
		wg.Go(func() {
			defer raw.Close()
			zeros := make([]byte, 256<<10)
			for {
				if _, err := out.Write(zeros); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			defer in.Close()
			conn := tls.Server(in, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
			buf := make([]byte, 256<<10)
			for {
				n, err := conn.Read(buf)
				if time.Since(start) > warm {
					sums[i] += int64(n)
				}
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	sum := int64(0)
	for _, s := range sums {
		sum += s
	}
	return float64(sum) / count.Seconds()
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

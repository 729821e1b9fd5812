package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
	"github.com/portolan/portolan/test/wan"
)

// authority is a private certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate, PEM
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert, key, filepath.Join(dir, "ca.crt")}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue writes a certificate for the loopback addresses, or for those given, and its
// key, key first: for a moment they do not fit together, as when people replace them.
func (a *authority) issue(t *testing.T, certFile, keyFile string, serial int64, addresses ...net.IP) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if len(addresses) == 0 {
		addresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "registry"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: addresses, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, keyFile, "PRIVATE KEY", pkcs8)
	writePEM(t, certFile, "CERTIFICATE", der)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTLS_ClientsVerify serves over TLS with a certificate of a private
// authority: clients that trust it alone push and pull, HTTP/2 is spoken, and a
// renewed certificate is taken over while a connection stays open.
func TestTLS_ClientsVerify(t *testing.T) {
	set := images.Make(t)
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	ca.issue(t, certFile, keyFile, 100)
	base := cluster.BasePort(t, 10)
	host := "127.0.0.1:" + strconv.Itoa(base)
	const password = "Given-secret-1"
	p := cluster.Start(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + password, "PORTOLAN_LOG_LEVEL=debug"}, "serve", "--site", "one", "--data", filepath.Join(dir, "data"),
		"--tls-cert", certFile, "--tls-key", keyFile, "--advertise", "127.0.0.1", "--bind", "127.0.0.1", "--http", host,
		"--gossip-port", strconv.Itoa(base+1), "--control-port", strconv.Itoa(base+2), "--data-port", strconv.Itoa(base+3))

	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	get := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+path, nil)
		if err != nil {
			return nil, err
		}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	cluster.Eventually(t, cluster.Patience, "ready", func() error {
		resp, err := get("/readyz")
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s", resp.Status)
		}
		return err
	})
	resp, err := get("/v2/")
	if err != nil {
		t.Fatal(err)
	}
	if resp.ProtoMajor != 2 {
		t.Errorf("%s is spoken, want HTTP/2", resp.Proto)
	}
	if c := resp.Header.Get("WWW-Authenticate"); !strings.Contains(c, `realm="https://`+host) {
		t.Errorf("the challenge is %s", c)
	}
	if strings.Contains(p.Output(), "plain HTTP") {
		t.Error("a warning about plain HTTP, though it is TLS")
	}

	// skopeo trusts nothing but the directory; without it, it refuses.
	certs := filepath.Join(dir, "certs.d")
	if err := os.Mkdir(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ca.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, "ca.crt"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	skopeo, image := clients.Need(t, "skopeo"), "docker://"+host+"/library/app:1"
	push := []string{"copy", "--dest-creds", "admin:" + password, "oci:" + set.Layout("app"), image}
	if _, err := clients.Try(t, nil, skopeo, push...); err == nil {
		t.Error("a client that does not know the authority pushed")
	}
	clients.Run(t, nil, skopeo, append(push, "--dest-cert-dir", certs)...)
	clients.Run(t, nil, skopeo, "copy", "--src-cert-dir", certs, image, "oci:"+filepath.Join(dir, "back")+":1")
	if r := cluster.RunCLI(t, []string{"SSL_CERT_FILE=" + ca.file, "PORTOLAN_USERNAME=admin", "PORTOLAN_PASSWORD=" + password},
		"project", "create", "over-tls", "--server", "https://"+host); r.Code != 0 {
		t.Errorf("the CLI over TLS: %s", r.Stderr)
	}
	// containerd would speak plain HTTP to loopback, if its file did not say better.
	containerd, hosts := clients.StartContainerd(t), filepath.Join(dir, "hosts")
	if err := os.MkdirAll(filepath.Join(hosts, host), 0o755); err != nil {
		t.Fatal(err)
	}
	pull := func(ca string) error {
		text := fmt.Sprintf("server = %[1]q\n[host.%[1]q]\n%[2]s", "https://"+host, ca)
		if err := os.WriteFile(filepath.Join(hosts, host, "hosts.toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := containerd.Try(t, "images", "pull", "--snapshotter", "native", "--hosts-dir", hosts, host+"/library/app:1")
		return err
	}
	if err := pull(""); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("containerd, which does not know the authority: %v", err)
	}
	if err := pull(fmt.Sprintf("ca = %q\n", ca.file)); err != nil {
		t.Error(err)
	}
	docker := clients.Docker(t)
	docker.Run(t, "pull", host+"/library/app:1")
	// A round trip over TLS with a login: what one engine pushed another has by the
	// same id. (Engines trust any certificate on 127.0.0.0/8: that one verifies it
	// is TestTLS_DockerVerifies.)
	docker.Login(t, host, "admin", password)
	docker.Run(t, "tag", host+"/library/app:1", host+"/library/pushed:1")
	docker.Run(t, "push", host+"/library/pushed:1")
	id := strings.TrimSpace(docker.Run(t, "image", "inspect", "--format", "{{.Id}}", host+"/library/pushed:1"))
	other := clients.Docker(t)
	other.Run(t, "pull", host+"/library/pushed:1")
	if got := strings.TrimSpace(other.Run(t, "image", "inspect", "--format", "{{.Id}}", host+"/library/pushed:1")); got != id {
		t.Errorf("docker pushed %s over TLS and pulled %s", id, got)
	}

	for _, agent := range []string{"skopeo/", "containerd/", "docker/"} {
		logProtocols(t, p, agent)
	}

	// A connection from before the renewal goes on; new ones get the new certificate.
	old, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool}}).DialContext(t.Context(), "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	ca.issue(t, certFile, keyFile, 200)
	cluster.Eventually(t, cluster.Patience, "the new certificate is in use", func() error {
		return servesSerial(t.Context(), host, pool, 200)
	})
	if _, err := fmt.Fprintf(old, "GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 64)
	if n, err := old.Read(answer); err != nil || !strings.Contains(string(answer[:n]), "200") {
		t.Errorf("the connection from before: %q, %v", answer[:n], err)
	}
}

// TestTLS_DockerVerifies has a docker engine at an address that is not loopback,
// where it trusts nobody unasked: it refuses the registry until its certs.d names
// the authority, then it logs in, pushes and pulls.
func TestTLS_DockerVerifies(t *testing.T) {
	set := images.Make(t)
	const site = "fra"
	lab := wan.Start(t, wan.Topo{Sites: []wan.Site{{Name: site}}})
	addr := lab.Addr(site)
	host := addr + ":5000"
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	ca.issue(t, certFile, keyFile, 1, net.ParseIP(addr))
	certs := filepath.Join(dir, "certs.d")
	if err := os.MkdirAll(filepath.Join(certs, host), 0o755); err != nil {
		t.Fatal(err)
	}
	const password = "Given-secret-1"
	p := cluster.StartCommand(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + password, "PORTOLAN_LOG_LEVEL=debug"},
		lab.Command(context.Background(), site, cluster.Binary(t), "serve", "--site", site, "--data", filepath.Join(dir, "data"),
			"--tls-cert", certFile, "--tls-key", keyFile, "--advertise", addr, "--bind", addr, "--http", host))
	docker := clients.DockerAt(t, lab.Namespace(site), certs)
	cluster.Eventually(t, cluster.Patience, "it serves", func() error {
		select {
		case <-p.Exited():
			t.Fatalf("portolan ended: %v", p.Err())
		default:
		}
		// The word of the engine that it does not know the certificate is an answer too.
		out, err := docker.Try(t, "login", "-u", "admin", "-p", password, host)
		switch {
		case err == nil:
			t.Fatalf("an engine that does not know the authority logged in: %s", out)
		case !strings.Contains(err.Error(), "certificate signed by unknown authority"):
			return err
		}
		return nil
	})
	b, err := os.ReadFile(ca.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, host, "ca.crt"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	image := host + "/library/app:1"
	docker.Login(t, host, "admin", password)
	docker.Load(t, set.Layout("app"), image)
	docker.Run(t, "push", image)
	id := docker.Run(t, "image", "inspect", "--format", "{{.Id}}", image)
	other := clients.DockerAt(t, lab.Namespace(site), certs)
	other.Run(t, "pull", image)
	if got := other.Run(t, "image", "inspect", "--format", "{{.Id}}", image); got != id {
		t.Errorf("docker pushed %s and pulled %s", id, got)
	}
	logProtocols(t, p, "docker/")
}

// logProtocols notes what a client speaks over TLS, from a log at level debug: it
// is information, clients may do better one day.
func logProtocols(t *testing.T, p *cluster.Process, agent string) {
	t.Helper()
	spoken := map[string]int{}
	for line := range strings.Lines(p.Output()) {
		if _, proto, ok := strings.Cut(line, " proto="); ok && strings.Contains(line, agent) {
			spoken[strings.Fields(proto)[0]]++
		}
	}
	if len(spoken) == 0 {
		t.Errorf("no request of %s is in the log", agent)
	}
	t.Logf("requests of %s by protocol: %v", agent, spoken)
}

func servesSerial(ctx context.Context, host string, pool *x509.CertPool, want int64) error {
	c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool}}).DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	defer c.Close()
	got := c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	if got != want {
		return fmt.Errorf("certificate %d", got)
	}
	return nil
}

package mesh

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// nginxConfig is what people put in front of a registry: TLS, any body size, no
// buffering of uploads, and the headers that tell what the client asked for.
const nginxConfig = `
daemon off;
master_process off;
pid DIR/nginx.pid;
error_log stderr warn;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path DIR/body;
  proxy_temp_path DIR/proxy;
  fastcgi_temp_path DIR/fastcgi;
  uwsgi_temp_path DIR/uwsgi;
  scgi_temp_path DIR/scgi;
  server {
    listen 127.0.0.1:FRONT ssl;
    LISTEN6
    ssl_certificate DIR/tls.crt;
    ssl_certificate_key DIR/tls.key;
    client_max_body_size 0;
    proxy_request_buffering off;
    location /hub/ { # a registry below a path is none: clients ask for /v2/ of a host
      proxy_pass http://127.0.0.1:BACK;
    }
    location / {
      proxy_pass http://127.0.0.1:BACK;
      proxy_set_header Host inside.example;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-For $remote_addr;
    }
  }
}
`

// TestProxy_NginxInFront: behind a proxy that is trusted, challenges and
// locations name what the client asked for; a proxy that is not trusted is not
// believed.
func TestProxy_NginxInFront(t *testing.T) {
	nginx := clients.Need(t, "nginx")
	set := images.Make(t)
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	ca.issue(t, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), 7)
	base := cluster.BasePort(t, 10)
	back, front := strconv.Itoa(base), "127.0.0.1:"+strconv.Itoa(base+4)
	const password = "Given-secret-1"
	start := func(extra ...string) *cluster.Process {
		p := cluster.Start(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + password}, append([]string{"serve", "--site", "one",
			"--data", filepath.Join(dir, "data"), "--advertise", "127.0.0.1", "--bind", "127.0.0.1", "--http", "127.0.0.1:" + back,
			"--gossip-port", strconv.Itoa(base + 1), "--control-port", strconv.Itoa(base + 2), "--data-port", strconv.Itoa(base + 3)}, extra...)...)
		cluster.Eventually(t, cluster.Patience, "ready", func() error { return ready(t, "http://127.0.0.1:"+back) })
		return p
	}
	config := filepath.Join(dir, "nginx.conf")
	fronts, listen6 := []string{front}, ""
	if l, err := new(net.ListenConfig).Listen(t.Context(), "tcp6", "[::1]:0"); err == nil { // not every machine has it
		l.Close()
		fronts, listen6 = append(fronts, "[::1]:"+strconv.Itoa(base+4)), "listen [::1]:"+strconv.Itoa(base+4)+" ssl;"
	}
	text := strings.NewReplacer("DIR", dir, "LISTEN6", listen6, "FRONT", strconv.Itoa(base+4), "BACK", back).Replace(nginxConfig)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Not t.Context: it ends before Cleanup, which stops it in order.
	proxy := exec.CommandContext(context.Background(), nginx, "-c", config, "-p", dir)
	proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	proxy.Stderr = os.Stderr
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Signal(syscall.SIGTERM)
		_ = proxy.Wait()
	})

	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	challenge := func(host string) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/v2/", nil)
		if err != nil {
			return "", err
		}
		// What a client says of itself goes no further than the proxy.
		req.Header.Set("X-Forwarded-Host", "evil.example")
		req.Header.Set("X-Forwarded-Proto", "http")
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			return "", fmt.Errorf("%s", resp.Status)
		}
		return resp.Header.Get("WWW-Authenticate"), nil
	}
	realm := func(what, host, want string) {
		t.Helper()
		cluster.Eventually(t, cluster.Patience, what, func() error {
			got, err := challenge(host)
			if err == nil && !strings.Contains(got, `realm="`+want) {
				err = fmt.Errorf("the challenge is %s, want %s", got, want)
			}
			return err
		})
	}

	p := start()
	realm("a proxy that nobody trusts is not believed", front, "http://inside.example/")
	p.Stop(t)
	p = start("--trusted-proxies", "127.0.0.2,10.0.0.0/8,::1")
	realm("a proxy beside those that are trusted is not believed", front, "http://inside.example/")
	p.Stop(t)
	start("--trusted-proxies", "127.0.0.1")
	for _, host := range fronts {
		realm("a trusted proxy says what the client asked for", host, "https://"+host+"/service/token\"")
		throughProxy(t, client, "https://"+host, password)
	}

	// A push and a pull with the token flow, through the proxy.
	certs := filepath.Join(dir, "certs.d")
	if err := os.Mkdir(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, "ca.crt"), read(t, ca.file), 0o644); err != nil {
		t.Fatal(err)
	}
	skopeo, image := clients.Need(t, "skopeo"), "docker://"+front+"/library/app:1"
	clients.Run(t, nil, skopeo, "copy", "--dest-cert-dir", certs, "--dest-creds", "admin:"+password, "oci:"+set.Layout("app"), image)
	clients.Run(t, nil, skopeo, "copy", "--src-cert-dir", certs, image, "oci:"+filepath.Join(dir, "back")+":1")
	for _, d := range blobs(t, filepath.Join(dir, "back")) {
		if !strings.Contains(strings.Join(blobs(t, set.Layout("app")), " "), d) {
			t.Errorf("%s came back and was not pushed", d)
		}
	}
}

// throughProxy follows Locations as a client does: each must lead back to where
// it came from, scheme and port included.
func throughProxy(t *testing.T, client *http.Client, front, password string) {
	t.Helper()
	do := func(method, url, body string, code int) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("admin", password)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != code {
			t.Fatalf("%s %s: %d %s %v, want %d", method, url, resp.StatusCode, b, err, code)
		}
		return resp
	}
	follow := func(resp *http.Response) string {
		t.Helper()
		at, err := resp.Location()
		if err != nil || !strings.HasPrefix(at.String(), front+"/v2/library/") {
			t.Fatalf("the Location is %v (%v), not of %s", at, err, front)
		}
		return at.String()
	}
	const content = "pushed through a proxy"
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content)))
	// The host that the client used, before the name, is no part of it.
	host := strings.ToLower(strings.TrimPrefix(front, "https://"))
	if !strings.HasPrefix(host, "[") {
		do(http.MethodGet, front+"/v2/"+host+"/library/none/tags/list", "", http.StatusNotFound)
	}
	up := follow(do(http.MethodPost, front+"/v2/library/proxied/blobs/uploads/", "", http.StatusAccepted))
	up = follow(do(http.MethodPatch, up, content, http.StatusAccepted))
	blob := follow(do(http.MethodPut, up+"?digest="+digest, "", http.StatusCreated))
	do(http.MethodGet, blob, "", http.StatusOK)
	follow(do(http.MethodPut, front+"/v2/library/proxied/manifests/1",
		`{"schemaVersion":2,"manifests":[]}`, http.StatusCreated))
	do(http.MethodGet, front+"/hub/v2/", "", http.StatusNotFound)
}

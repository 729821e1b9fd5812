package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// TestTrouble_Requests sends what users get wrong to a mesh of one site: each
// gets the right status, the specification's code, and a sentence.
func TestTrouble_Requests(t *testing.T) {
	m := mesh{cluster.StartDev(t, 1)}
	zeros := strings.Repeat("0", 64)
	start := func() string {
		loc, _ := m.upload(t, "library/trouble")
		return loc
	}
	octets := http.Header{"Content-Type": {"application/octet-stream"}}
	manifest := http.Header{"Content-Type": {"application/vnd.oci.image.manifest.v1+json"}}
	absent := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":2},"layers":[]}`, zeros)

	for _, c := range []struct {
		name, method, path string
		header             http.Header
		body               []byte
		status             int
		code               string
		says               string
	}{
		{"push to a project that is not there", "POST", "/v2/nowhere/app/blobs/uploads/", nil, nil, 404, "NAME_UNKNOWN", "portolan project create nowhere"},
		{"pull of a tag that is not there", "GET", "/v2/library/app/manifests/none", nil, nil, 404, "MANIFEST_UNKNOWN", ""},
		{"name outside the grammar", "GET", "/v2/library/UPPER/manifests/1", nil, nil, 400, "NAME_INVALID", ""},
		{"name over 255 characters", "POST", "/v2/library/" + strings.Repeat("a", 256) + "/blobs/uploads/", nil, nil, 400, "NAME_INVALID", ""},
		{"digest that does not match", "PUT", start() + "?digest=sha256:" + zeros, octets, []byte("something else"), 400, "DIGEST_INVALID", ""},
		{"chunk out of order", "PATCH", start(), http.Header{"Content-Type": {"application/octet-stream"}, "Content-Range": {"100-104"}}, []byte("later"), 416, "", ""},
		{"manifest of blobs that no site has", "PUT", "/v2/library/trouble/manifests/1", manifest, []byte(absent), 404, "MANIFEST_BLOB_UNKNOWN", zeros},
		{"manifest that is none", "PUT", "/v2/library/trouble/manifests/1", manifest, []byte("{"), 400, "MANIFEST_INVALID", ""},
		{"manifest over the limit", "PUT", "/v2/library/trouble/manifests/1", manifest, bytes.Repeat([]byte(" "), 5<<20), 413, "", ""},
		{"upload that is not there", "PATCH", "/v2/library/trouble/blobs/uploads/6a5b0e0e-0000-4000-8000-000000000000", octets, []byte("x"), 404, "BLOB_UPLOAD_UNKNOWN", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, err := m.Do(t, 0, c.method, c.path, c.header, bytes.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if status != c.status && !(c.code == "MANIFEST_BLOB_UNKNOWN" && status == 400) {
				t.Errorf("status %d, want %d: %s", status, c.status, body)
			}
			if c.code != "" && !strings.Contains(string(body), `"`+c.code+`"`) {
				t.Errorf("no code %s in %s", c.code, body)
			}
			if !strings.Contains(string(body), c.says) {
				t.Errorf("%q is not in %s", c.says, body)
			}
		})
	}
	if err := m.hasTag(t, 0, "library/trouble", "1"); err == nil {
		t.Error("a refused manifest left a tag behind")
	}
	if status, _, _ := m.Get(t, 0, "/healthz"); status != http.StatusOK {
		t.Errorf("the node is not well afterwards: %d", status)
	}
}

// upload begins an upload at site 0 and gives its path.
func (m mesh) upload(t *testing.T, repository string) (path string, status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.Sites[0].URL+"/v2/"+repository+"/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(m.Username, m.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	loc, err := resp.Location()
	if err != nil {
		t.Fatalf("POST uploads: %s: %v", resp.Status, err)
	}
	return loc.Path, resp.StatusCode
}

// TestTrouble_Start starts nodes that can't start: each says why in a sentence
// and ends with an error.
func TestTrouble_Start(t *testing.T) {
	base := cluster.BasePort(t, 20)
	at := func(dir string, extra ...string) []string {
		return append([]string{"--data", dir, "--advertise", "127.0.0.1", "--bind", "127.0.0.1",
			"--http", "127.0.0.1:" + strconv.Itoa(base), "--gossip-port", strconv.Itoa(base + 1),
			"--control-port", strconv.Itoa(base + 2), "--data-port", strconv.Itoa(base + 3)}, extra...)
	}
	for i, option := range []string{"--http", "--gossip-port", "--control-port", "--data-port"} {
		t.Run("port of "+option+" in use", func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(base+i))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			refused(t, append([]string{"serve", "--site", "one"}, at(t.TempDir())...), option, strconv.Itoa(base+i))
		})
	}
	t.Run("empty directory and no site", func(t *testing.T) {
		refused(t, append([]string{"serve"}, at(t.TempDir())...), "--site", "portolan join")
	})
	t.Run("unknown key in the configuration file", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(file, []byte("gosip-port: 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, append([]string{"serve", "--site", "one", "--config", file}, at(dir)...), "gosip-port", "gossip-port")
	})
	t.Run("token that is none", func(t *testing.T) {
		refused(t, append([]string{"join", "rubbish"}, at(t.TempDir())...), "token")
	})
	t.Run("directory of a newer version", func(t *testing.T) {
		dir := t.TempDir()
		p := cluster.Start(t, nil, append([]string{"serve", "--site", "one"}, at(dir)...)...)
		url := "http://127.0.0.1:" + strconv.Itoa(base)
		cluster.Eventually(t, cluster.Patience, "ready", func() error { return ready(t, url) })
		cluster.Eventually(t, cluster.Patience, "it warns of plain HTTP", func() error { return said(p, "plain HTTP") })
		second := cluster.RunCLI(t, nil, append([]string{"serve"}, at(dir)...)...)
		if second.Code == 0 || !strings.Contains(second.Stderr, "in use") {
			t.Errorf("a second process on the same directory: %d %s", second.Code, second.Stderr)
		}
		p.Stop(t)
		file := filepath.Join(dir, "format")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var format map[string]any
		if err := json.Unmarshal(b, &format); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		format["version"] = 99
		if b, err = json.Marshal(format); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, append([]string{"serve"}, at(dir)...), "newer")
	})
}

// said: what a process printed takes a moment to arrive here.
func said(p *cluster.Process, words string) error {
	if out := p.Output(); !strings.Contains(out, words) {
		return fmt.Errorf("%q is not in what it said:\n%s", words, out)
	}
	return nil
}

func ready(t *testing.T, url string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %s", resp.Status)
	}
	return nil
}

// refused runs portolan and wants it to end with an error that says all of says.
func refused(t *testing.T, args []string, says ...string) {
	t.Helper()
	r := cluster.RunCLI(t, nil, args...)
	if r.Code == 0 {
		t.Fatalf("portolan %s ended with 0", strings.Join(args, " "))
	}
	for _, s := range says {
		if !strings.Contains(r.Stderr, s) {
			t.Errorf("%q is not in what it said:\n%s", s, r.Stderr)
		}
	}
	if strings.Contains(r.Stderr, "goroutine ") {
		t.Errorf("it crashed:\n%s", r.Stderr)
	}
}

// TestTrouble_Tokens uses join tokens wrongly.
func TestTrouble_Tokens(t *testing.T) {
	m := mesh{cluster.StartDev(t, 1)}
	token := func(args ...string) string {
		var made struct{ Token string }
		if err := json.Unmarshal([]byte(m.Must(t, 0, append([]string{"token", "create", "--json", "--site"}, args...)...)), &made); err != nil {
			t.Fatal(err)
		}
		return made.Token
	}
	join := func(token, dir string) []string {
		base := m.BasePort + 10
		return []string{"join", token, "--no-serve", "--data", dir, "--advertise", "127.0.0.1", "--bind", "127.0.0.1",
			"--http", "127.0.0.1:" + strconv.Itoa(base), "--gossip-port", strconv.Itoa(base + 1),
			"--control-port", strconv.Itoa(base + 2), "--data-port", strconv.Itoa(base + 3)}
	}
	t.Run("used by another", func(t *testing.T) {
		tok := token("sgp")
		first := t.TempDir()
		if r := cluster.RunCLI(t, nil, join(tok, first)...); r.Code != 0 {
			t.Fatalf("join: %s", r.Stderr)
		}
		refused(t, join(tok, t.TempDir()), "used")
	})
	t.Run("for a site that is there", func(t *testing.T) {
		r := m.CLI(t, 0, "token", "create", "--site", "site1")
		if r.Code == 0 {
			refused(t, join(strings.TrimSpace(r.Stdout), t.TempDir()), "site1")
		} else if !strings.Contains(r.Stderr, "site1") {
			t.Errorf("said %s", r.Stderr)
		}
	})
	t.Run("expired", func(t *testing.T) {
		tok := token("late", "--expires-in", "1s")
		cluster.Eventually(t, cluster.Patience, "the token has expired", func() error {
			r := cluster.RunCLI(t, nil, join(tok, t.TempDir())...)
			if !strings.Contains(r.Stderr, "expired") {
				return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
			}
			return nil
		})
	})
	t.Run("of a mesh that does not answer", func(t *testing.T) {
		tok := token("far")
		m.Dev.Stop(t)
		refused(t, join(tok, t.TempDir()), "127.0.0.1:"+strconv.Itoa(m.BasePort+2))
	})
}

// TestTrouble_NoMajority leaves one site of three alone: pulls and pushes go on
// there, edits are refused at once, with names.
func TestTrouble_NoMajority(t *testing.T) {
	set := images.Make(t)
	m := mesh{cluster.StartDev(t, 3)}
	m.skopeoPush(t, 0, set.Layout("base"), "library/kept:1")
	cluster.Eventually(t, cluster.Patience, "the push is listed at site 3", func() error { return m.hasTag(t, 2, "library/kept", "1") })
	m.KillSite(t, 0)
	m.KillSite(t, 1)

	cluster.Eventually(t, cluster.Patience, "edits are refused", func() error {
		r := m.CLI(t, 2, "project", "create", "refused")
		if r.Code == 0 {
			return fmt.Errorf("one site of three made an edit: %s", r.Stdout)
		}
		for _, s := range []string{"site1", "site2"} {
			if !strings.Contains(r.Stderr, s) {
				return fmt.Errorf("%s is not named: %s", s, r.Stderr)
			}
		}
		return nil
	})
	body := `{"project_name":"refused","metadata":{"public":"false"}}`
	began := time.Now()
	status, answer, err := m.Do(t, 2, http.MethodPost, "/api/v2.0/projects", http.Header{"Content-Type": {"application/json"}}, strings.NewReader(body))
	if err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("an edit without majority: %d %s %v, want 503", status, answer, err)
	}
	t.Logf("refused after %s", time.Since(began).Round(time.Millisecond))

	m.skopeoPush(t, 2, set.Layout("base"), "library/alone:1")
	if _, err := m.digest(t, 2, "library/alone:1"); err != nil {
		t.Errorf("a push of its own can't be pulled: %v", err)
	}
	if err := ready(t, m.Sites[2].URL); err != nil {
		t.Errorf("a site that is cut off must stay ready: %v", err)
	}
	// What it knows and does not hold: an answer at once, with who would have it.
	want := sha256.Sum256(nil)
	status, answer, err = m.Get(t, 2, fmt.Sprintf("/v2/library/kept/blobs/sha256:%x", want))
	if err != nil || status != http.StatusNotFound {
		t.Errorf("a blob that nobody knows: %d %s %v, want 404", status, answer, err)
	}

	m.RestartSite(t, 0)
	m.RestartSite(t, 1)
	cluster.Eventually(t, cluster.Patience, "edits go on with a majority", func() error {
		if r := m.CLI(t, 2, "project", "create", "accepted"); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})
	cluster.Eventually(t, cluster.Patience, "the push of the lone site is everywhere", func() error { return m.hasTag(t, 0, "library/alone", "1") })
}

// Package oci is the distribution specification as tables of HTTP exchanges, run
// against a real node over real HTTP with each digest algorithm. A new corner of
// the specification is a few lines: what was sent, and what has to come back.
//
// It covers the ground of the specification's own conformance tool, check by
// check (conformance_test.go maps them), so that no tool and no network is
// needed to know that it would pass, and then what the tool does not ask:
// access, caching, old clients, warnings.
package oci

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/cluster"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		// `make check` is the quick loop; `make test` and CI run these.
		fmt.Println("the specification's tables are not run with -short")
		return
	}
	code := m.Run()
	cluster.RemoveBinary()
	os.Exit(code)
}

// password is everybody's.
const password = "Given-secret-1"

// exchange is one request and what its answer must be.
type exchange struct {
	name   string
	as     string   // who asks: "" is dev, a maintainer; "-" is nobody
	do     string   // "METHOD /path"; {name} stands for what an exchange before saved
	header []string // name, value, ...
	body   []byte
	stream bool // send the body without saying how long it is

	code  int
	want  []string // header, value, ...: "" must not be there, "*" is anything, "x*" begins with x
	text  string   // part of the body
	lacks string   // not part of the body
	exact *string  // the whole body
	save  string   // keep the Location under this name
}

// node is a registry of one site, with the projects conf and shut. dev is a
// maintainer of both, guest may pull from conf, stranger may nothing.
type node struct {
	url    string
	client *http.Client
}

func startNode(t *testing.T) *node {
	t.Helper()
	base := cluster.BasePort(t, 4)
	dir := t.TempDir()
	url := "http://127.0.0.1:" + strconv.Itoa(base)
	cluster.Start(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + password}, "serve", "--site", "one", "--data", filepath.Join(dir, "data"),
		"--advertise", "127.0.0.1", "--bind", "127.0.0.1", "--http", "127.0.0.1:"+strconv.Itoa(base),
		"--gossip-port", strconv.Itoa(base+1), "--control-port", strconv.Itoa(base+2), "--data-port", strconv.Itoa(base+3))
	n := &node{url: url, client: &http.Client{Timeout: cluster.Patience, Transport: &http.Transport{}}}
	t.Cleanup(n.client.CloseIdleConnections)
	cluster.Eventually(t, cluster.Patience, "ready", func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := n.client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	for _, args := range []string{
		"user create dev --password " + password, "user create guest --password " + password, "user create stranger --password " + password,
		"project create conf", "project create shut", "project member set conf dev maintainer", "project member set shut dev maintainer", "project member set conf guest guest",
	} {
		r := cluster.RunCLI(t, []string{"PORTOLAN_USERNAME=admin", "PORTOLAN_PASSWORD=" + password}, append(strings.Fields(args), "--server", url)...)
		if r.Code != 0 {
			t.Fatalf("portolan %s: %s%s", args, r.Stdout, r.Stderr)
		}
	}
	return n
}

// algorithms are those that the table is run with.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

func TestSpecification(t *testing.T) {
	n := startNode(t)
	for _, s := range scenarios {
		for _, alg := range algorithms {
			t.Run(s.name+"/"+alg.String(), func(t *testing.T) {
				slug := strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(s.name)) + "-" + alg.String()
				k := &kit{alg: alg, url: n.url, repo: "conf/" + slug, other: "conf/" + slug + "/other", shut: "shut/" + slug}
				n.run(t, s.rows(k))
			})
		}
	}
}

func (n *node) run(t *testing.T, rows []exchange) {
	t.Helper()
	saved := map[string]string{}
	for _, e := range rows {
		n.one(t, e, saved)
		if t.Failed() {
			return // what follows builds upon it
		}
	}
}

// one sends a request and compares the answer.
func (n *node) one(t *testing.T, e exchange, saved map[string]string) {
	t.Helper()
	method, path, _ := strings.Cut(e.do, " ")
	for name, value := range saved {
		path = strings.ReplaceAll(path, "{"+name+"}", value)
	}
	if !strings.HasPrefix(path, "http") {
		path = n.url + path
	}
	var body io.Reader = bytes.NewReader(e.body)
	if e.stream {
		body = io.MultiReader(body) // hides the length
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, body)
	if err != nil {
		t.Fatalf("%s: %v", e.name, err)
	}
	switch e.as {
	case "-":
	case "":
		req.SetBasicAuth("dev", password)
	default:
		req.SetBasicAuth(e.as, password)
	}
	for i := 0; i+1 < len(e.header); i += 2 {
		req.Header.Add(e.header[i], e.header[i+1])
	}
	resp, err := n.client.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", e.name, err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: the body: %v", e.name, err)
	}
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s %s: %s\n%d %v\n%s", e.name, method, path, fmt.Sprintf(format, args...), resp.StatusCode, resp.Header, clip(got))
	}
	if resp.StatusCode != e.code {
		fail("status %d, want %d", resp.StatusCode, e.code)
	}
	if v := resp.Header.Get("Docker-Distribution-Api-Version"); v != "registry/2.0" {
		fail("Docker-Distribution-Api-Version is %q", v)
	}
	for i := 0; i+1 < len(e.want); i += 2 {
		have, want := strings.Join(resp.Header.Values(e.want[i]), ", "), e.want[i+1]
		if prefix, open := strings.CutSuffix(want, "*"); have != want && (!open || have == "" || !strings.HasPrefix(have, prefix)) {
			fail("header %s is %q, want %q", e.want[i], have, want)
		}
	}
	if !bytes.Contains(got, []byte(e.text)) {
		fail("the body lacks %q", clip([]byte(e.text)))
	}
	if e.lacks != "" && bytes.Contains(got, []byte(e.lacks)) {
		fail("the body has %q", e.lacks)
	}
	if e.exact != nil && string(got) != *e.exact {
		fail("the body is not %q", clip([]byte(*e.exact)))
	}
	if method == http.MethodHead && len(got) > 0 {
		fail("an answer to HEAD has a body")
	}
	if e.save != "" {
		at, err := resp.Location()
		if err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		saved[e.save] = at.String()
	}
}

func clip(b []byte) string {
	const most = 500
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}

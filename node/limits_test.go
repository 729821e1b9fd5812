package node

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// The options that bound what clients may do reach the parts that refuse.
func TestRun_LimitsTakeEffect(t *testing.T) {
	m := newMachine(t)
	m.start("--site", "ams", "--max-blob-size", "1MiB", "--max-uploads", "3", "--max-uploads-per-user", "2",
		"--client-timeout", "5s", "--uploads-kept-for", "1h", "--metrics-for", "admins")
	push := func(size int) error {
		b := bytes.Repeat([]byte("x"), size)
		_, err := m.send(http.MethodPost, "/v2/library/app/blobs/uploads/?digest="+digest.FromBytes(b).String(), "", bytes.NewReader(b))
		return err
	}
	if err := push(1 << 20); err != nil {
		t.Error(err)
	}
	if err := push(1<<20 + 1); err == nil || !strings.Contains(err.Error(), "413") || !strings.Contains(err.Error(), "SIZE_INVALID") {
		t.Errorf("a blob above the bound: %v", err)
	}
	for range 2 {
		if _, err := m.send(http.MethodPost, "/v2/library/app/blobs/uploads/", "", nil); err != nil {
			t.Error(err)
		}
	}
	if _, err := m.send(http.MethodPost, "/v2/library/app/blobs/uploads/", "", nil); err == nil || !strings.Contains(err.Error(), "429") || !strings.Contains(err.Error(), "TOOMANYREQUESTS") {
		t.Errorf("a third upload of one user: %v", err)
	}
	if b, err := m.get("/metrics"); err != nil || !strings.Contains(string(b), "portolan_node_build_info") {
		t.Errorf("metrics for the administrator: %v", err)
	}
	resp, err := m.http.Get(m.url() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("metrics for nobody: %s", resp.Status)
	}
	// A body that stands still is let go after the five seconds, not the two minutes.
	slow, end := io.Pipe()
	defer end.Close()
	if _, err := m.send(http.MethodPut, "/v2/library/app/manifests/1", "application/vnd.example", slow); err == nil || !strings.Contains(err.Error(), "408") || !strings.Contains(err.Error(), "in 5s") {
		t.Errorf("a body that never comes: %v", err)
	}
}

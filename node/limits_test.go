package node

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

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

// An upload that nobody goes on with is kept as long as the option says, also
// over restarts, and no longer.
func TestRun_UploadsKeptFor(t *testing.T) {
	m := newMachine(t)
	m.start("--site", "ams", "--uploads-kept-for", "2h")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.url()+"/v2/library/app/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	resp, err := m.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	at := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusAccepted || at == "" {
		t.Fatalf("%s at %q", resp.Status, at)
	}
	if _, err := m.send(http.MethodPatch, at, "application/octet-stream", strings.NewReader("the first bytes")); err != nil {
		t.Fatal(err)
	}
	m.mustStop()
	m.ahead.Store(int64(110 * time.Minute))
	m.start()
	if _, err := m.get(at); err != nil {
		t.Errorf("after 110 minutes: %v", err)
	}
	m.mustStop()
	m.ahead.Store(int64(125 * time.Minute))
	m.start()
	m.await("the upload is gone", func() error {
		if _, err := m.get(at); err == nil || !strings.Contains(err.Error(), "BLOB_UPLOAD_UNKNOWN") {
			return fmt.Errorf("after 125 minutes: %w", err)
		}
		return nil
	})
}

package client

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"http://127.0.0.1:5000":    "http://127.0.0.1:5000",
		"https://reg.example.org/": "https://reg.example.org",
		"127.0.0.1:5000":           "http://127.0.0.1:5000",
		"localhost:5000":           "http://localhost:5000",
		"[::1]:5000":               "http://[::1]:5000",
		"reg.example.org":          "https://reg.example.org",
		"reg.example.org:5000":     "https://reg.example.org:5000",
		"":                         "",
		"ftp://x":                  "",
		"http://x/path":            "",
		"http://user:pw@x":         "",
		"http://":                  "",
	} {
		got, err := Normalize(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestClient_SaysWhatIsWrong(t *testing.T) {
	var answer func(w http.ResponseWriter)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	defer srv.Close()
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		says   string
		retry  bool
		after  time.Duration
	}{
		{"a node's sentence", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"errors":[{"code":"UNAVAILABLE","message":"edits are not possible now","sites":["nyc"]}]}`))
		}, "edits are not possible now", true, 2 * time.Second},
		{"somebody else's page", func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write([]byte("<html>"))
		}, "not as a Portolan node does: check the server's address", false, 0},
		{"a page instead of JSON", func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>")) }, "is not what a Portolan node says", false, 0},
		{"the wish for a login", func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) }, "wants a login: portolan login ", false, 0},
	} {
		answer = c.answer
		_, err := New(srv.URL, "", "").Status(t.Context())
		after, retry := Retryable(err)
		if err == nil || !strings.Contains(err.Error(), c.says) || retry != c.retry || after != c.after {
			t.Errorf("%s: %v (again %v after %s)", c.name, err, retry, after)
		}
	}
	answer = func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{}`)) }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(srv.URL, "", "").Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	_, err := New(strings.Replace(srv.URL, "http:", "https:", 1), "", "").Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "speaks plain HTTP: write it as "+srv.URL) {
		t.Errorf("TLS to a plain port: %v", err)
	}
	_, err = New("http://127.0.0.1:1", "", "").Status(t.Context())
	if _, ok := Retryable(err); !ok || !strings.Contains(err.Error(), "nothing listens at") {
		t.Errorf("nobody there: %v", err)
	}
}

package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func logger(t testing.TB, level, format string) (*slog.Logger, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	l, err := NewLogger(&b, level, format)
	if err != nil {
		t.Fatal(err)
	}
	return l, &b
}

func TestNewLogger_Text(t *testing.T) {
	l, b := logger(t, "", "")
	l = l.With("site", "fra")
	l.Debug("not shown")
	l.Info("site joined", "node", "12D3Koo", "took", 1500*time.Millisecond)
	l.WithGroup("http").Warn("slow", "path", "/v2/a b", "n", 3, slog.Group("peer", "ip", "10.0.0.1"), "empty", "")
	l.Error("bad\x1b[31m", "err", errors.New("line one\nline two"), "at", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	got := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3} `).ReplaceAllString(b.String(), "")
	want := `INFO  site joined  site=fra node=12D3Koo took=1.5s
WARN  slow  site=fra http.path="/v2/a b" http.n=3 http.peer.ip=10.0.0.1 http.empty=""
ERROR "bad\x1b[31m"  site=fra err="line one\nline two" at=2026-01-02T03:04:05Z
`
	if got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
}

func TestNewLogger_JSONAndLevels(t *testing.T) {
	l, b := logger(t, "debug", "json")
	l.Debug("x", "n", 1)
	if !strings.Contains(b.String(), `"msg":"x","n":1`) {
		t.Fatal(b)
	}
	for _, c := range [][2]string{{"loud", "text"}, {"info", "xml"}} {
		if _, err := NewLogger(io.Discard, c[0], c[1]); err == nil {
			t.Errorf("%v was accepted", c)
		}
	}
	l, b = logger(t, "error", "text")
	l.Warn("x")
	if b.Len() != 0 {
		t.Fatal(b)
	}
}

func TestStdLog(t *testing.T) {
	l, b := logger(t, "debug", "text")
	std := StdLog(l, "memberlist", nil)
	std.Printf("[DEBUG] memberlist: one")
	std.Printf("[INFO] memberlist: two")
	std.Printf("[WARN] memberlist: three")
	std.Printf("[ERR] memberlist: four")
	std.Printf("five")
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Fields(line)[1]+" "+line[strings.Index(line, "detail="):len(line)-1])
	}
	want := "[DEBUG detail=one DEBUG detail=two WARN detail=three WARN detail=four DEBUG detail=five]"
	if fmt.Sprint(got) != want {
		t.Fatalf("got %v", got)
	}
}

func TestStdLog_IsBounded(t *testing.T) {
	l, b := logger(t, "info", "text")
	std := StdLog(l, "memberlist", nil)
	for range 1000 {
		std.Printf("[ERR] memberlist: garbage from 192.0.2.1")
	}
	if n := strings.Count(b.String(), "\n"); n < libraryLinesBurst || n > 2*libraryLinesBurst {
		t.Fatalf("%d lines of 1000, want about %d", n, libraryLinesBurst)
	}
}

func TestHCLog(t *testing.T) {
	l, b := logger(t, "debug", "text")
	h := HCLog(l, "raft", nil).With("site", "fra")
	h.Info("entering follower state", "leader-id", "x")
	h.Warn("heartbeat timeout", "last", hclog.Fmt("%d ms", 5))
	h.Named("net").Error("no")
	h.Trace("debug for us")
	h.StandardLogger(nil).Printf("[WARN] raft: odd")
	for _, want := range []string{
		`DEBUG raft  detail="entering follower state" site=fra leader-id=x`,
		`WARN  raft  detail="heartbeat timeout" site=fra last="5 ms"`,
		"ERROR raft.net  detail=no site=fra",
		"WARN  raft  detail=odd",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no line %s in\n%s", want, b)
		}
	}
	quiet, _ := logger(t, "warn", "text")
	q := HCLog(quiet, "raft", nil)
	if q.IsInfo() || !q.IsWarn() || q.GetLevel() != hclog.Warn {
		t.Error("levels do not follow the process's logger")
	}
}

// TestRepeats: what the node says in words of its own is said once; trouble
// stays, also when it comes after a flood of the rest.
func TestRepeats(t *testing.T) {
	repeats := func(msg string, _ ...any) bool { return strings.Contains(msg, "contact") }
	l, b := logger(t, "info", "text")
	h := HCLog(l, "raft", repeats)
	for range 1000 {
		h.Error("failed to contact")
		h.StandardLogger(nil).Print("[ERR] no contact")
		StdLog(l, "raft", repeats).Print("[WARN] raft: no contact")
	}
	h.Named("wal").With("n", 1).Error("failed to contact")
	h.Error("disk full")
	if got := b.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `ERROR raft  detail="disk full"`) {
		t.Fatal(got)
	}
	l, b = logger(t, "debug", "text")
	HCLog(l, "raft", repeats).Error("failed to contact")
	if !strings.Contains(b.String(), "DEBUG raft") {
		t.Fatal(b)
	}
}

func TestHandler(t *testing.T) {
	rec := httptest.NewRecorder()
	Handler(NewRegistry("v1.2.3")).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`portolan_node_build_info{version="v1.2.3"} 1`, "go_goroutines", "process_open_fds"} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}

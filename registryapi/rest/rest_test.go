package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFromError(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
		retry  string
		known  bool
	}{
		{&command.Error{Code: command.CodeInvalid, Message: "m"}, 400, CodeBadRequest, "", true},
		{&command.Error{Code: command.CodeNotFound, Message: "m"}, 404, CodeNotFound, "", true},
		{&command.Error{Code: command.CodeExists, Message: "m"}, 409, CodeConflict, "", true},
		{&command.Error{Code: command.CodeConflict, Message: "m"}, 412, CodePrecondition, "", true},
		{&command.Error{Code: command.CodeDenied, Message: "m"}, 403, CodeForbidden, "", true},
		{&command.Error{Code: command.CodeExpired, Message: "m"}, 400, CodeBadRequest, "", true},
		{&command.Error{Code: command.CodeUsed, Message: "m"}, 409, CodeConflict, "", true},
		{fmt.Errorf("wrapped: %w", &command.Error{Code: command.CodeNotFound, Message: "m"}), 404, CodeNotFound, "", true},
		{&command.Unavailable{Reason: "no leader", Sites: []string{"nyc"}, RetryAfter: 1200 * time.Millisecond}, 503, CodeUnavailable, "2", true},
		{&command.Unavailable{Reason: "no leader"}, 503, CodeUnavailable, "1", true},
		{context.Canceled, 503, CodeUnavailable, "1", true},
		{context.DeadlineExceeded, 503, CodeUnavailable, "1", true},
		{fmt.Errorf("delete: %w", catalog.ErrTooLarge), 413, "REQUEST_ENTITY_TOO_LARGE", "", true},
		{fmt.Errorf("commit: %w", syscall.ENOSPC), 507, CodeUnavailable, "", true},
		{fmt.Errorf("%w: repository", catalog.ErrInvalid), 400, CodeBadRequest, "", true},
		{fmt.Errorf("tag: %w", catalog.ErrNotFound), 404, CodeNotFound, "", true},
		{errors.New("disk on fire at /secret"), 500, CodeUnknown, "", false},
	} {
		e, known := FromError(c.err)
		if e.Status != c.status || e.Code != c.code || known != c.known || e.GetHeaders().Get("Retry-After") != c.retry {
			t.Errorf("%v: %d %s retry %q known %v", c.err, e.Status, e.Code, e.GetHeaders().Get("Retry-After"), known)
		}
		b, err := json.Marshal(e)
		var f Failures
		if err != nil || json.Unmarshal(b, &f) != nil || len(f.Errors) != 1 || f.Errors[0].Message == "" || f.Errors[0].Message == c.err.Error() && !c.known {
			t.Errorf("%v: body %s", c.err, b)
		}
	}
}

func TestParseFilter(t *testing.T) {
	for _, c := range []struct {
		q     string
		value string
		match bool
		ok    bool
	}{
		{"", "anything", true, true},
		{"name=app", "app", true, true},
		{"name=app", "apple", false, true},
		{"name=~PP", "apple", true, true},
		{" name=app , ", "app", true, true},
		{"colour=red", "", false, false},
		{"name", "", false, false},
		{"name={a b}", "", false, false},
		{"name=[1~2]", "", false, false},
	} {
		f, err := ParseFilter(c.q, "name")
		if (err == nil) != c.ok || (err == nil && f.OK("name", c.value) != c.match) {
			t.Errorf("%q on %q: %v, %v", c.q, c.value, f, err)
		}
	}
}

type anyone struct{}

func (anyone) Authenticate(*http.Request) (access.Subject, error) { return access.Subject{}, nil }

// TestAPI_AnswersAreNotCutByTheBodysDeadline: net/http reads on while a handler
// works, and a read deadline left over from the body would end its context.
func TestAPI_AnswersAreNotCutByTheBodysDeadline(t *testing.T) {
	a := New(Config{Title: "t", Version: "1", Prefix: "/x", Auth: anyone{}, Logger: slog.New(slog.DiscardHandler)})
	entered, release := make(chan struct{}), make(chan struct{})
	Register(a, Op{ID: "slow", Method: http.MethodPost, Path: "/slow"}, func(ctx context.Context, in *struct {
		Body struct {
			Text string `json:"text"`
		}
	}) (*struct{ Body string }, error) {
		close(entered)
		<-release
		return &struct{ Body string }{in.Body.Text}, ctx.Err()
	})
	deadlines := make(chan time.Time, 8)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.ServeHTTP(&watched{ResponseWriter: w, set: deadlines}, r)
	}))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /x/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"+`{"text":"hi"}`)
	<-entered
	if first := <-deadlines; first.IsZero() {
		t.Error("the body was read without a deadline")
	}
	last := time.Now()
	for n := len(deadlines); n > 0; n-- {
		last = <-deadlines
	}
	if !last.IsZero() {
		t.Errorf("the handler runs under a read deadline: %s", last)
	}
	close(release)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("answer %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// watched tells of each read deadline that is set.
type watched struct {
	http.ResponseWriter
	set chan time.Time
}

func (w *watched) SetReadDeadline(t time.Time) error {
	w.set <- t
	return http.NewResponseController(w.ResponseWriter).SetReadDeadline(t)
}

func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// TestAPI_Closed: a node that makes no changes any more refuses them, whoever
// would make them, and answers all else.
func TestAPI_Closed(t *testing.T) {
	why := ""
	a := New(Config{Title: "t", Version: "1", Prefix: "/x", Auth: anyone{}, Closed: func() string { return why }, Logger: slog.New(slog.DiscardHandler)})
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		Register(a, Op{ID: "do-" + strings.ToLower(method), Method: method, Path: "/thing"}, func(context.Context, *struct{}) (*struct{ Body string }, error) {
			return &struct{ Body string }{"done"}, nil
		})
	}
	call := func(method string) (int, string) {
		w := httptest.NewRecorder()
		a.ServeHTTP(w, httptest.NewRequest(method, "/x/thing", nil))
		return w.Code, w.Body.String()
	}
	if code, body := call(http.MethodDelete); code != http.StatusOK {
		t.Errorf("open: %d %s", code, body)
	}
	why = "this node was removed"
	if code, body := call(http.MethodGet); code != http.StatusOK {
		t.Errorf("a read: %d %s", code, body)
	}
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		if code, body := call(method); code != http.StatusForbidden || !strings.Contains(body, why) {
			t.Errorf("%s: %d %s", method, code, body)
		}
	}
}

package apitest

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
)

// Request is one that a fuzzer made up. User "" is nobody.
type Request struct {
	User, Method, Path, Query, Body string
	Header                          map[string]string
}

// methods are those that APIs have; others are as good as PATCH.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// HTTP gives the request as a server would see it; nil where net/http would not
// have let it through.
func (r Request) HTTP() *http.Request {
	target := r.Path
	if r.Query != "" {
		target += "?" + r.Query
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || !slices.Contains(methods, r.Method) || !strings.HasPrefix(u.Path, "/") || strings.Contains(target, " ") {
		return nil
	}
	h := httptest.NewRequestWithContext(context.Background(), r.Method, "/", strings.NewReader(r.Body))
	h.URL.Path, h.URL.RawPath, h.URL.RawQuery = u.Path, u.RawPath, u.RawQuery
	h.Header.Set("Content-Type", "application/json")
	for k, v := range r.Header {
		if !httpguts.ValidHeaderFieldValue(v) {
			return nil
		}
		h.Header.Set(k, v)
	}
	if r.User != "" {
		h.SetBasicAuth(r.User, AdminPassword)
	}
	return h
}

// Send has h answer a made-up request, and checks what is true of every answer of
// a management API: see [CheckAnswer]. ok is false where there was nothing to ask.
func Send(t testing.TB, h http.Handler, r Request) (a Answer, ok bool) {
	t.Helper()
	req := r.HTTP()
	if req == nil {
		return Answer{}, false
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	a = Answer{Status: w.Code, Header: w.Header(), Body: w.Body.String()}
	CheckAnswer(t, req, a)
	return a, true
}

var linkForm = regexp.MustCompile(`^<([^>]*)>; rel="(next|prev)"$`)

// CheckAnswer fails the test unless the answer is no fault of the node's (5xx), has
// headers of one line, and has one of the forms of a management API: one error with
// code and message, or JSON; a list with its total, at most 100 entries, and links
// to itself.
func CheckAnswer(t testing.TB, r *http.Request, a Answer) {
	t.Helper()
	if a.Status >= 500 {
		t.Fatalf("%s %s: %d %s", r.Method, r.URL, a.Status, a.Body)
	}
	for name, values := range a.Header {
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				t.Fatalf("%s %s: header %s is %q", r.Method, r.URL, name, v)
			}
		}
	}
	if r.Method == http.MethodHead || a.Status/100 == 3 { // net/http's own words
		return
	}
	if a.Status >= 400 {
		var body struct {
			Errors []struct{ Code, Message string }
		}
		err := json.Unmarshal([]byte(a.Body), &body)
		if err != nil || len(body.Errors) != 1 || body.Errors[0].Code == "" || body.Errors[0].Message == "" || a.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%s %s: %d as %q: %.500s (%v)", r.Method, r.URL, a.Status, a.Header.Get("Content-Type"), a.Body, err)
		}
		if (a.Status == http.StatusUnauthorized) != (a.Header.Get("WWW-Authenticate") != "") {
			t.Fatalf("%s %s: %d with %v", r.Method, r.URL, a.Status, a.Header)
		}
		return
	}
	if kind := a.Header.Get("Content-Type"); a.Body != "" && strings.Contains(kind, "json") && !json.Valid([]byte(a.Body)) {
		t.Fatalf("%s %s: %d %.500s", r.Method, r.URL, a.Status, a.Body)
	}
	if total := a.Header.Get("X-Total-Count"); total != "" {
		checkList(t, r, a, total)
	}
}

func checkList(t testing.TB, r *http.Request, a Answer, total string) {
	t.Helper()
	n, err := strconv.Atoi(total)
	var entries []json.RawMessage
	if jerr := json.Unmarshal([]byte(a.Body), &entries); err != nil || jerr != nil || entries == nil || len(entries) > n || len(entries) > 100 {
		t.Fatalf("%s: %d entries of %q: %v, %v", r.URL, len(entries), total, err, jerr)
	}
	link := a.Header.Get("Link")
	if link == "" {
		return
	}
	for part := range strings.SplitSeq(link, " , ") {
		m := linkForm.FindStringSubmatch(part)
		if m == nil {
			t.Fatalf("%s: link %q", r.URL, link)
		}
		u, err := url.Parse(m[1])
		if err != nil || u.Host != "" || u.EscapedPath() != r.URL.EscapedPath() {
			t.Fatalf("%s: link %q: %v", r.URL, link, err)
		}
	}
}

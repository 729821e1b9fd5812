package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portolan/portolan/registryapi/rest"
)

const (
	// maxAnswer bounds what is read of an answer: a page of the largest list.
	maxAnswer = 16 << 20
	// pageSize is the largest that the API gives.
	pageSize = rest.MaxPageSize
	// headersFor bounds the wait for an answer to begin: longer than the
	// longest call, a slice of waiting (20 s), or an edit held for an election.
	headersFor = 60 * time.Second
)

// Client speaks to one node.
type Client struct {
	server   string // scheme://host[:port], no slash
	username string
	password string
	http     *http.Client
}

// New makes a client of the node at server, as Normalize gives it. Without a
// username it asks as nobody.
func New(server, username, password string) *Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = headersFor
	return &Client{server: strings.TrimRight(server, "/"), username: username, password: password, http: &http.Client{Transport: t}}
}

// Server gives the node's address.
func (c *Client) Server() string { return c.server }

// Normalize reads what people write for a server: a URL, or HOST[:PORT], which
// is https unless it is this machine.
func Normalize(s string) (string, error) {
	s = strings.TrimRight(strings.TrimSpace(s), "/")
	if !strings.Contains(s, "://") {
		scheme := "https://"
		host, _, err := net.SplitHostPort(s)
		if err != nil {
			host = s
		}
		if ip := net.ParseIP(strings.Trim(host, "[]")); host == "localhost" || (ip != nil && ip.IsLoopback()) {
			scheme = "http://"
		}
		s = scheme + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || (u.Scheme != "http" && u.Scheme != "https") || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return "", fmt.Errorf("%q is not a server: write it as http://HOST:PORT or https://HOST", s)
	}
	return u.Scheme + "://" + u.Host, nil
}

// Error is what a node answered instead of what was asked for.
type Error struct {
	Status  int
	Code    string
	Message string
	Sites   []string // that cannot be reached, where that is the reason
	// RetryAfter is when the node says that it is worth asking again.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// IsNotFound reports whether err says that something is not there.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// Retryable reports whether the same request may succeed a little later, and
// when: the node is starting, stopping or without a majority, or was not reached.
func Retryable(err error) (after time.Duration, ok bool) {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter, e.Status == http.StatusServiceUnavailable || e.Status == http.StatusTooManyRequests || e.Status == http.StatusBadGateway || e.Status == http.StatusGatewayTimeout
	}
	var u *Unreachable
	return 0, errors.As(err, &u)
}

// Unreachable says that the node did not answer.
type Unreachable struct {
	Server string
	Err    error
}

func (e *Unreachable) Error() string {
	var dns *net.DNSError
	var tlsPlain = strings.Contains(e.Err.Error(), "server gave HTTP response to HTTPS client")
	switch {
	case tlsPlain:
		return fmt.Sprintf("%s speaks plain HTTP: write it as %s", e.Server, strings.Replace(e.Server, "https://", "http://", 1))
	case errors.As(e.Err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("there is no host %q: check the server's name (--server)", dns.Name)
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s: is the node running, and is that its address (--server)?", e.Server)
	case errors.Is(e.Err, context.DeadlineExceeded):
		return fmt.Sprintf("%s did not answer in time: is the node running, and is that its address (--server)?", e.Server)
	}
	return fmt.Sprintf("%s does not answer (%v): is the node running, and is that its address (--server)?", e.Server, innermost(e.Err))
}

func (e *Unreachable) Unwrap() error { return e.Err }

func innermost(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// answer is what do gives beside the body.
type answer struct {
	header http.Header
	status int
}

// do makes one request. in is sent as JSON unless it is nil, out read as JSON
// unless it is nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in, out any) (answer, error) {
	return c.doIf(ctx, "", method, path, query, in, out)
}

// doIf is do with what If-Match says; empty: there is none.
func (c *Client) doIf(ctx context.Context, match, method, path string, query url.Values, in, out any) (answer, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return answer{}, fmt.Errorf("the request cannot be written: %w", err)
		}
		body = bytes.NewReader(b)
	}
	u := c.server + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return answer{}, fmt.Errorf("%q is not a server: write it as http://HOST:PORT or https://HOST", c.server)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "portolan")
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	if c.username != "" {
		req.SetBasicAuth(c.username, c.password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
			return answer{}, context.Canceled
		}
		return answer{}, &Unreachable{Server: c.server, Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return answer{}, &Unreachable{Server: c.server, Err: err}
	case len(b) > maxAnswer:
		return answer{}, fmt.Errorf("the answer of %s is over %d bytes: is it a Portolan node?", u, maxAnswer)
	case resp.StatusCode >= 300:
		return answer{}, c.failure(resp, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			return answer{}, fmt.Errorf("the answer of %s is not what a Portolan node says: check the server's address (--server)", c.server)
		}
	}
	return answer{header: resp.Header, status: resp.StatusCode}, nil
}

func (c *Client) failure(resp *http.Response, body []byte) error {
	e := &Error{Status: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	var f rest.Failures
	if json.Unmarshal(body, &f) == nil && len(f.Errors) > 0 && f.Errors[0].Message != "" {
		e.Code, e.Message, e.Sites = f.Errors[0].Code, f.Errors[0].Message, f.Errors[0].Sites
		for _, more := range f.Errors[1:] {
			e.Message += "; " + more.Message
		}
	} else {
		e.Message = fmt.Sprintf("%s answered %s, not as a Portolan node does: check the server's address (--server)", c.server, resp.Status)
	}
	if resp.StatusCode == http.StatusUnauthorized && c.username == "" {
		e.Message = fmt.Sprintf("%s wants a login: portolan login %s, or set PORTOLAN_USERNAME and PORTOLAN_PASSWORD", c.server, c.server)
	}
	return e
}

// all reads a paged list to its end.
func all[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	out := []T{}
	q := url.Values{"page_size": {strconv.Itoa(pageSize)}}
	for k, v := range query {
		q[k] = v
	}
	for page := 1; ; page++ {
		q.Set("page", strconv.Itoa(page))
		var part []T
		a, err := c.do(ctx, http.MethodGet, path, q, nil, &part)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
		// Without a total the first page is all that is known of.
		total, _ := strconv.Atoi(a.header.Get("X-Total-Count"))
		if len(out) >= total || len(part) == 0 {
			return out, nil
		}
	}
}

// get reads one object.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	_, err := c.do(ctx, http.MethodGet, path, query, nil, &out)
	return out, err
}

// Password gives the login's password: a user who changes his own must name it.
func (c *Client) Password() string { return c.password }

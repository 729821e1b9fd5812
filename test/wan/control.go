package wan

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
	"time"
)

// maxRequest bounds requests and topologies: 254 sites with all their links.
const maxRequest = 16 << 20

// callLimit bounds one call of a Control; the router answers in milliseconds.
const callLimit = 30 * time.Second

// ServeHTTP is the control API: GET /stats, POST /stats (and zero the counters),
// POST /link with a Link, POST /isolate?site=NAME, POST /heal[?site=NAME].
// Errors are 400 with a sentence.
func (r *router) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	answer := any(struct{}{})
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxRequest))
	if err == nil {
		switch site := req.URL.Query().Get("site"); req.Method + " " + req.URL.Path {
		case "GET /stats":
			answer, err = r.stats(false)
		case "POST /stats":
			answer, err = r.stats(true)
		case "POST /link":
			var l Link
			if err = decode(body, &l); err == nil {
				err = r.change(l)
			}
		case "POST /isolate":
			err = r.isolate(site)
		case "POST /heal":
			err = r.heal(site)
		default:
			err = fmt.Errorf("there is no request %s %s", req.Method, req.URL.Path)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // who does not read it does not want it
}

// Control speaks to a lab that is up, in this process or another. It may be used
// by several goroutines at once.
type Control struct {
	lab    string
	client http.Client
}

// NewControl returns the control of the lab with a name. It does not connect:
// each call does.
func NewControl(lab string) *Control {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socketPath(lab))
	}
	return &Control{lab: lab, client: http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: callLimit}}
}

// Stats returns the counters since the start or the last reset, and zeroes them
// if reset is set.
func (c *Control) Stats(ctx context.Context, reset bool) (Stats, error) {
	method := http.MethodGet
	if reset {
		method = http.MethodPost
	}
	var st Stats
	return st, c.call(ctx, method, "/stats", nil, &st)
}

// Link changes one link; it holds for packets to come.
func (c *Control) Link(ctx context.Context, l Link) error {
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, "/link", body, nil)
}

// Isolate cuts a site off from all others.
func (c *Control) Isolate(ctx context.Context, site string) error {
	return c.call(ctx, http.MethodPost, "/isolate?"+url.Values{"site": {site}}.Encode(), nil, nil)
}

// Heal undoes Isolate and takes up the links of a site; of all sites if site is
// empty.
func (c *Control) Heal(ctx context.Context, site string) error {
	return c.call(ctx, http.MethodPost, "/heal?"+url.Values{"site": {site}}.Encode(), nil, nil)
}

// call sends a request and decodes the answer, if it is wanted.
func (c *Control) call(ctx context.Context, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://wanlab"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return fmt.Errorf("lab %s: %w", c.lab, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil {
		return fmt.Errorf("lab %s: %w", c.lab, err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(b)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(b, answer)
}

package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

const (
	password     = "correct-horse-battery"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"

	// keptWithin is by how much a power cut may take an upload back: one unit.
	keptWithin = 1 << 20
)

// client pushes to a repository of its own, one request after another, and
// remembers what it was told.
type client struct {
	base string // URL of the registry
	repo string
	rng  *rand.Rand
	http *http.Client
	acks *atomic.Int64 // of all clients

	blobs    map[digest.Digest]blob // acknowledged
	tags     map[string]*tag
	projects map[string]bool // true: acknowledged; false: asked for
	open     *open           // the upload that it is at
	n        int             // for names
	sizes    []int           // of blobs
}

// blob is a content that follows from a seed, so that it need not be kept.
type blob struct {
	seed uint64
	size int
}

func (b blob) bytes() []byte {
	out := make([]byte, b.size)
	_, _ = rand.NewChaCha8([32]byte{byte(b.seed), byte(b.seed >> 8), byte(b.seed >> 16), byte(b.seed >> 24), byte(b.seed >> 32)}).Read(out)
	return out
}

// tag is what a tag may say; "" is nothing.
type tag struct {
	acked digest.Digest
	asked []digest.Digest // since then
}

// open is an upload that was not finished.
type open struct {
	blob   blob
	where  string // path
	acked  int64  // offset that was answered
	ending bool   // the last request was sent
}

func newClient(base, repo string, rng *rand.Rand, acks *atomic.Int64) *client {
	return &client{
		base: base, repo: repo, rng: rng, acks: acks,
		http:  &http.Client{Transport: &http.Transport{}},
		blobs: map[digest.Digest]blob{}, tags: map[string]*tag{}, projects: map[string]bool{}, sizes: sizes,
	}
}

// errGone: the node does not answer any more.
var errGone = errors.New("no answer")

// do sends a request. An answer other than those wanted is an error, and none at
// all is errGone.
func (c *client) do(ctx context.Context, method, path string, header http.Header, body []byte, want ...int) (*http.Response, []byte, error) {
	url := path
	if strings.HasPrefix(path, "/") {
		url = c.base + path
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.SetBasicAuth("admin", password)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errGone, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errGone, err)
	}
	if !slices.Contains(want, resp.StatusCode) {
		return nil, nil, fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return resp, b, nil
}

// work pushes until the node is gone.
func (c *client) work(ctx context.Context) error {
	for {
		err := c.step(ctx)
		if errors.Is(err, errGone) {
			c.http.CloseIdleConnections()
			return nil
		}
		if err != nil {
			return err
		}
		c.acks.Add(1)
	}
}

func (c *client) step(ctx context.Context) error {
	switch c.rng.IntN(10) {
	case 0:
		return c.createProject(ctx)
	case 1:
		return c.deleteTag(ctx)
	case 2, 3, 4:
		_, err := c.push(ctx)
		return err
	default:
		return c.image(ctx)
	}
}

var sizes = []int{100, 4 << 10, 40 << 10, 300 << 10, 2_500_000}

// push sends a blob in one of the ways there are.
func (c *client) push(ctx context.Context) (blob, error) {
	b := blob{c.rng.Uint64() & 0xffffffffff, c.sizes[c.rng.IntN(len(c.sizes))]}
	content := b.bytes()
	d := digest.FromBytes(content)
	resp, _, err := c.do(ctx, http.MethodPost, "/v2/"+c.repo+"/blobs/uploads/", nil, nil, http.StatusAccepted)
	if err != nil {
		return b, err
	}
	c.open = &open{blob: b, where: resp.Header.Get("Location")}
	rest := content
	for range c.rng.IntN(4) {
		n := c.rng.IntN(len(rest) + 1)
		if n == 1 {
			n = 0 // see goOn
		}
		resp, _, err = c.do(ctx, http.MethodPatch, c.open.where, http.Header{"Content-Type": {"application/octet-stream"}}, rest[:n], http.StatusAccepted)
		if err != nil {
			return b, err
		}
		rest = rest[n:]
		c.open.where, c.open.acked = resp.Header.Get("Location"), int64(len(content)-len(rest))
	}
	return b, c.finish(ctx, d, rest)
}

// finish sends the rest of the open upload.
func (c *client) finish(ctx context.Context, d digest.Digest, rest []byte) error {
	c.open.ending = true
	sep := "?"
	if strings.Contains(c.open.where, "?") {
		sep = "&"
	}
	_, _, err := c.do(ctx, http.MethodPut, c.open.where+sep+"digest="+d.String(), http.Header{"Content-Type": {"application/octet-stream"}}, rest, http.StatusCreated)
	if err != nil {
		return err
	}
	c.blobs[d] = c.open.blob
	c.open = nil
	return nil
}

// image pushes two blobs and a manifest that names them, under one of few tags.
func (c *client) image(ctx context.Context) error {
	config, err := c.push(ctx)
	if err != nil {
		return err
	}
	layer, err := c.push(ctx)
	if err != nil {
		return err
	}
	m, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": map[string]any{"mediaType": configType, "digest": digest.FromBytes(config.bytes()), "size": config.size},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.FromBytes(layer.bytes()), "size": layer.size}},
	})
	if err != nil {
		return err
	}
	name := fmt.Sprint("t", c.rng.IntN(5))
	t := c.tags[name]
	if t == nil {
		t = &tag{}
		c.tags[name] = t
	}
	d := digest.FromBytes(m)
	t.asked = append(t.asked, d)
	if _, _, err := c.do(ctx, http.MethodPut, "/v2/"+c.repo+"/manifests/"+name, http.Header{"Content-Type": {manifestType}}, m, http.StatusCreated); err != nil {
		return err
	}
	t.acked, t.asked = d, nil
	return nil
}

func (c *client) deleteTag(ctx context.Context) error {
	for name, t := range c.tags {
		if t.acked == "" {
			continue
		}
		t.asked = append(t.asked, "")
		if _, _, err := c.do(ctx, http.MethodDelete, "/v2/"+c.repo+"/manifests/"+name, nil, nil, http.StatusAccepted); err != nil {
			return err
		}
		t.acked, t.asked = "", nil
		return nil
	}
	return nil
}

// createProject edits the raft state.
func (c *client) createProject(ctx context.Context) error {
	c.n++
	name := fmt.Sprintf("p%d-%s", c.n, strings.ReplaceAll(c.repo, "/", "-"))
	c.projects[name] = false
	_, _, err := c.do(ctx, http.MethodPost, "/api/v2.0/projects", http.Header{"Content-Type": {"application/json"}},
		fmt.Appendf(nil, `{"project_name":%q}`, name), http.StatusCreated)
	if err != nil {
		return err
	}
	c.projects[name] = true
	return nil
}

// verify holds the node against all that this client was told.
func (c *client) verify(ctx context.Context, killed bool) error {
	var errs []error
	for d, b := range c.blobs {
		_, got, err := c.do(ctx, http.MethodGet, "/v2/"+c.repo+"/blobs/"+d.String(), nil, nil, http.StatusOK)
		if err != nil {
			errs = append(errs, fmt.Errorf("an acknowledged blob of %d bytes: %w", b.size, err))
		} else if !bytes.Equal(got, b.bytes()) {
			errs = append(errs, fmt.Errorf("an acknowledged blob of %d bytes has others", b.size))
		}
	}
	for name, t := range c.tags {
		errs = append(errs, c.verifyTag(ctx, name, t))
	}
	for name, acked := range c.projects {
		_, _, err := c.do(ctx, http.MethodGet, "/api/v2.0/projects/"+name, nil, nil, http.StatusOK)
		if err != nil && acked {
			errs = append(errs, fmt.Errorf("an acknowledged project: %w", err))
		}
	}
	return errors.Join(append(errs, c.goOn(ctx, killed))...)
}

func (c *client) verifyTag(ctx context.Context, name string, t *tag) error {
	resp, b, err := c.do(ctx, http.MethodGet, "/v2/"+c.repo+"/manifests/"+name, http.Header{"Accept": {manifestType}}, nil, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return err
	}
	d := digest.Digest("")
	if resp.StatusCode == http.StatusOK {
		d = digest.FromBytes(b)
	}
	if d != t.acked && !slices.Contains(t.asked, d) {
		return fmt.Errorf("tag %s says %q, acknowledged was %q, asked for since then %q", name, d, t.acked, t.asked)
	}
	t.acked, t.asked = d, nil // from here on it may not change by itself
	if d == "" {
		return nil
	}
	// What a tag names is all there.
	var m struct {
		Config struct{ Digest digest.Digest }
		Layers []struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, ref := range []digest.Digest{m.Config.Digest, m.Layers[0].Digest} {
		_, got, err := c.do(ctx, http.MethodGet, "/v2/"+c.repo+"/blobs/"+ref.String(), nil, nil, http.StatusOK)
		if err != nil || digest.FromBytes(got) != ref {
			return fmt.Errorf("tag %s names %s, which has %d bytes: %w", name, ref, len(got), err)
		}
	}
	return nil
}

// goOn takes up the upload that was cut off, from where the node says that it is.
func (c *client) goOn(ctx context.Context, killed bool) error {
	if c.open == nil {
		return nil
	}
	defer func() { c.open = nil }()
	content := c.open.blob.bytes()
	resp, _, err := c.do(ctx, http.MethodGet, c.open.where, nil, nil, http.StatusNoContent, http.StatusNotFound)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusNotFound {
		if c.open.ending || !killed && c.open.acked < keptWithin {
			return nil
		}
		return fmt.Errorf("an upload that answered %d is gone", c.open.acked)
	}
	var off int64
	if r := resp.Header.Get("Range"); r != "" {
		_, end, _ := strings.Cut(r, "-")
		last, err := strconv.ParseInt(end, 10, 64)
		if err != nil {
			return fmt.Errorf("Range of an upload: %q", r)
		}
		if off = last + 1; last == 0 {
			off = 0 // so is an empty upload told; push sees to it that none has one byte
		}
	}
	if off > int64(len(content)) || killed && off < c.open.acked || off <= c.open.acked-keptWithin {
		return fmt.Errorf("an upload that answered %d of %d is at %d", c.open.acked, len(content), off)
	}
	if l := resp.Header.Get("Location"); l != "" {
		c.open.where = l
	}
	return c.finish(ctx, digest.FromBytes(content), content[off:])
}

package v2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// vouched is a blob whose bytes can be had before they are proven.
type vouched struct {
	*arriving
	ctx    context.Context
	early  bool
	proven chan error
}

func (v *vouched) Early() { v.early = true }

func (v *vouched) Proven() error {
	select {
	case err := <-v.proven:
		return err
	case <-v.ctx.Done():
		return v.ctx.Err()
	}
}

func (v *vouched) Read(p []byte) (int, error) {
	if !v.early {
		return 0, errors.New("nobody said that it is to be early")
	}
	return v.arriving.Read(p)
}

// vouching gives such blobs.
type vouching struct {
	*elsewhere
	proven chan error
}

func (v *vouching) OpenBlob(ctx context.Context, w Want) (Blob, error) {
	b, err := v.elsewhere.OpenBlob(ctx, w)
	if err != nil {
		return nil, err
	}
	return &vouched{arriving: b.(*arriving), ctx: ctx, proven: v.proven}, nil
}

// All but the last byte of an answer goes out early, of one range and of several, too;
// that byte when all is proven, and never if it turns out to be wrong.
func TestBlob_TheEndOfAnEarlyAnswerWaitsForTheProof(t *testing.T) {
	far := bytes.Repeat([]byte("far away "), 50_000)
	mesh := &vouching{elsewhere: &elsewhere{content: map[digest.Digest][]byte{digest.FromBytes(far): far}}, proven: make(chan error, 1)}
	s := newSite(t, func(c *Config) { c.Source, c.Claimer, c.Refresher = mesh, mesh, mesh })
	s.push("prod/app", []byte("{}"))
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(image([]byte("{}"), far)), "Content-Type", imageType).want(t, 201)
	// On a connection that was used before, the client would ask again by itself.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for name, c := range map[string]struct {
		ranges string
		status int
		want   []byte // nil: several parts
	}{
		"whole":        {"", 200, far},
		"a range":      {"bytes=9000-100000", 206, far[9000:100_001]},
		"a byte":       {"bytes=9-9", 206, far[9:10]},
		"to the end":   {"bytes=449990-", 206, far[449_990:]},
		"two ranges":   {"bytes=0-99,200000-300000", 206, nil},
		"beyond there": {"bytes=450000-", 416, []byte("invalid range: failed to overlap\n")},
	} {
		for _, wrong := range []error{nil, errLink} {
			t.Run(name+", wrong: "+strconv.FormatBool(wrong != nil), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v2/prod/app/blobs/"+digest.FromBytes(far).String(), nil)
				if err != nil {
					t.Fatal(err)
				}
				req.SetBasicAuth("guest", "pw")
				if c.ranges != "" {
					req.Header.Set("Range", c.ranges)
				}
				// What is so short stays in the server's buffer to the end, with its head.
				short := c.want != nil && len(c.want) < 1000
				if short {
					mesh.proven <- wrong
				}
				resp, err := client.Do(req)
				if err != nil {
					if wrong == nil || !short {
						t.Fatal(err)
					}
					return // cut off before the client had the head
				}
				defer resp.Body.Close()
				if resp.StatusCode != c.status {
					t.Fatalf("status %d", resp.StatusCode)
				}
				var got []byte
				if !short {
					// What the server has in its buffer for small writes may wait as well.
					got = make([]byte, resp.ContentLength-8<<10)
					if _, err := io.ReadFull(resp.Body, got); err != nil {
						t.Fatal(err)
					}
					mesh.proven <- wrong
				}
				rest, err := io.ReadAll(resp.Body)
				got = append(got, rest...)
				if wrong != nil {
					if err == nil || resp.ContentLength >= 0 && int64(len(got)) >= resp.ContentLength {
						t.Fatalf("the client has %d bytes of %d and no error", len(got), resp.ContentLength)
					}
					return
				}
				if err != nil || c.want != nil && !bytes.Equal(got, c.want) {
					t.Fatalf("%d of %d bytes, %v", len(got), len(c.want), err)
				}
				if c.want == nil && (int64(len(got)) != resp.ContentLength || !bytes.HasSuffix(bytes.TrimSpace(got), []byte("--")) || !bytes.Contains(got, far[200_000:300_001])) {
					t.Fatalf("%d of %d bytes: %q", len(got), resp.ContentLength, clip(string(got[len(got)-min(len(got), 200):])))
				}
			})
		}
	}
}

// An answer of which nobody says how long it is has its end kept back as well: it
// can't be longer than its first write.
func TestKeptEnd_WithoutALength(t *testing.T) {
	var out strings.Builder
	w := &keptEnd{ResponseWriter: &written{Builder: &out}}
	for _, b := range []string{"", "abc"} {
		if n, err := w.Write([]byte(b)); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := w.Write([]byte("d")); !errors.Is(err, http.ErrContentLength) || out.String() != "ab" {
		t.Fatalf("%v, %q went out", err, out.String())
	}
	w.release()
	if out.String() != "abc" {
		t.Fatalf("%q went out", out.String())
	}
}

// written is an answer in memory.
type written struct{ *strings.Builder }

func (*written) Header() http.Header { return http.Header{} }
func (*written) WriteHeader(int)     {}

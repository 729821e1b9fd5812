package linear

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/portolan/portolan/test/cluster"
)

const (
	tagClients = 6
	// afterUnknown is how long a client rests after an answer that says nothing: each
	// is a call that may have been made at any time since, which the checker has to try.
	afterUnknown = 300 * time.Millisecond
	imageType    = "application/vnd.oci.image.manifest.v1+json"
)

var strongTags = []string{"a", "b", "c"}

// tagged is a mesh of real processes whose clients push, delete and read the tags of
// a project where they are strong.
type tagged struct {
	paused

	lost map[tagKind]int // 409s; under mu
}

const (
	tagRepository = "/v2/prod/app"
	tagConfig     = "{}"
	tagLayer      = "the layer of all images"
)

// image is a manifest that only n tells from others.
func tagImage(n string) (body []byte, digest string) {
	body = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%x","size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%x","size":%d}],"annotations":{"n":%q}}`,
		imageType, sha256.Sum256([]byte(tagConfig)), len(tagConfig), sha256.Sum256([]byte(tagLayer)), len(tagLayer), n)
	return body, fmt.Sprintf("sha256:%x", sha256.Sum256(body))
}

// send makes one request at site i. An error means that nobody knows what became of it.
func (p *tagged) send(ctx context.Context, i int, method, tag string, header map[string]string, body []byte) (status int, digest, said string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, p.mesh.Sites[i].URL+tagRepository+"/manifests/"+tag, bytes.NewReader(body))
	if err != nil {
		return 0, "", "", err
	}
	req.SetBasicAuth(p.mesh.Username, p.mesh.Password)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("Docker-Content-Digest"), string(b), err
}

// do makes a call at site i and notes how it ended. It reports false if nobody knows.
func (p *tagged) do(ctx context.Context, client, i int, c tagCall, body []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, pauseCall)
	defer cancel()
	header := map[string]string{"Content-Type": imageType}
	if c.match != "" {
		header["If-Match"] = `"` + c.match + `"`
	}
	if c.missing {
		header["If-None-Match"] = "*"
	}
	method := http.MethodPut
	switch c.kind {
	case tagDelete:
		method = http.MethodDelete
	case tagRead:
		method, header = http.MethodGet, map[string]string{"Accept": imageType, "X-Portolan-Consistency": "strict"}
	}
	from := time.Now()
	status, digest, said, err := p.send(ctx, i, method, c.tag, header, body)
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		if c.kind != tagRead {
			p.noteTag(client, c, tagAnswer{unknown: true}, from)
		}
		return false
	case status == http.StatusConflict && c.kind != tagRead:
		p.mu.Lock()
		p.lost[c.kind]++
		p.mu.Unlock()
	case status == http.StatusPreconditionFailed && (c.match != "" || c.missing):
		p.noteTag(client, c, tagAnswer{refused: true}, from)
	case status == http.StatusNotFound && c.kind != tagPush:
		p.noteTag(client, c, tagAnswer{gone: true}, from)
	case status == map[tagKind]int{tagRead: http.StatusOK, tagPush: http.StatusCreated, tagDelete: http.StatusAccepted}[c.kind]:
		p.noteTag(client, c, tagAnswer{digest: digest}, from)
	default:
		p.t.Errorf("%+v at %s: %d %s", c, p.mesh.Sites[i].Name, status, said)
	}
	return true
}

func (p *tagged) noteTag(client int, c tagCall, a tagAnswer, from time.Time) {
	p.record(client, c, a, a.unknown, from)
}

// here is what a tag says at site i without asking the others: what somebody there
// would base a condition on.
func (p *tagged) here(ctx context.Context, i int, tag string) string {
	ctx, cancel := context.WithTimeout(ctx, pauseCall)
	defer cancel()
	status, digest, _, err := p.send(ctx, i, http.MethodHead, tag, map[string]string{"Accept": imageType}, nil)
	if err != nil || status != http.StatusOK {
		return ""
	}
	return digest
}

func (p *tagged) client(ctx context.Context, id int, rng *rand.Rand) {
	calls := context.WithoutCancel(ctx)
	for n := 0; ctx.Err() == nil; n++ {
		i, c := rng.IntN(len(p.mesh.Sites)), tagCall{tag: strongTags[rng.IntN(len(strongTags))]}
		pause := time.Duration(5+rng.IntN(30)) * time.Millisecond
		switch k := rng.IntN(10); {
		case k < 4:
			c.kind = tagRead
		case k < 8:
			c.kind = tagPush
		default:
			c.kind = tagDelete
		}
		var body []byte
		if c.kind == tagPush {
			body, c.digest = tagImage(fmt.Sprintf("%d.%d", id, n))
		}
		if c.kind != tagRead && rng.IntN(2) == 0 {
			// What another site has: now and then one that is gone.
			c.match = p.here(calls, rng.IntN(len(p.mesh.Sites)), c.tag)
			c.missing = c.match == "" && c.kind == tagPush
		}
		if !p.do(calls, id, i, c, body) {
			pause = afterUnknown
		}
		wait(ctx, pause)
	}
}

// breakIt kills and restarts the leader, and lets a site stand still, in turns,
// until ctx ends.
func (p *tagged) breakIt(ctx context.Context, rng *rand.Rand) (kills, pauses int) {
	for wait(ctx, time.Duration(1000+rng.IntN(1000))*time.Millisecond) {
		if kills <= pauses {
			i := p.leads(ctx)
			p.t.Logf("%6s: %s, which leads, is killed", time.Since(p.start).Round(time.Millisecond), p.mesh.Sites[i].Name)
			p.mesh.KillSite(p.t, i)
			wait(ctx, time.Duration(500+rng.IntN(1500))*time.Millisecond)
			p.mesh.RestartSite(p.t, i)
			kills++
			continue
		}
		i, lasts := rng.IntN(len(p.mesh.Sites)), time.Duration(1500+rng.IntN(1500))*time.Millisecond
		p.t.Logf("%6s: %s stands still for %s", time.Since(p.start).Round(time.Millisecond), p.mesh.Sites[i].Name, lasts)
		p.signal(i, syscall.SIGSTOP)
		wait(ctx, lasts)
		p.signal(i, syscall.SIGCONT)
		pauses++
	}
	return kills, pauses
}

// prepare makes the project, once three sites vote, and brings the images' blobs to
// all sites.
func (p *tagged) prepare() {
	t := p.t
	p.mesh.WaitVoters(t, 0, 3)
	p.mesh.Must(t, 0, "project", "create", "prod", "--tags", "strong")
	for i := range p.mesh.Sites {
		for _, b := range []string{tagConfig, tagLayer} {
			cluster.Eventually(t, cluster.Patience, "a blob at "+p.mesh.Sites[i].Name, func() error {
				status, said, err := p.mesh.Do(t, i, http.MethodPost, fmt.Sprintf("%s/blobs/uploads/?digest=sha256:%x", tagRepository, sha256.Sum256([]byte(b))),
					http.Header{"Content-Type": {"application/octet-stream"}}, bytes.NewReader([]byte(b)))
				if err == nil && status != http.StatusCreated {
					err = fmt.Errorf("%d %s", status, said)
				}
				return err
			})
		}
	}
}

// TestLinearizable_StrongTags: three real processes take pushes, deletions and strict
// reads of strong tags, with and without conditions, while the leader is killed and
// restarted and a site stands still. All that was answered is of one order.
func TestLinearizable_StrongTags(t *testing.T) {
	seed := chosenSeed(t)
	length := *forFlag
	if testing.Short() {
		length = min(length, 8*time.Second)
	}
	p := &tagged{lost: map[tagKind]int{}, paused: paused{world: &world{t: t, start: time.Now()}, mesh: cluster.StartDev(t, 3),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: tagClients}}}}
	t.Cleanup(p.http.CloseIdleConnections)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	p.prepare()

	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for id := range tagClients {
		wg.Go(func() { p.client(ctx, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	kills, pauses := p.breakIt(ctx, rand.New(rand.NewPCG(seed, tagClients)))
	wg.Wait()

	counts := map[string]int{"pushes lost": p.lost[tagPush], "deletions lost": p.lost[tagDelete]}
	for _, op := range p.history {
		c, a := op.Input.(tagCall), op.Output.(tagAnswer)
		switch {
		case a.unknown:
			counts["not known"]++
		case a.refused:
			counts["refused"]++
		default:
			counts[[...]string{"reads", "pushes", "deletions"}[c.kind]]++
		}
	}
	t.Logf("%d calls under %d kills and %d pauses: %v", len(p.history), kills, pauses, counts)
	if kills == 0 || pauses == 0 || len(p.history) < 5*int(length.Seconds()) || counts["reads"] == 0 || counts["pushes"] == 0 || counts["deletions"] == 0 || counts["refused"] == 0 {
		t.Error("too few faults or calls to show anything")
	}
	result, info := porcupine.CheckOperationsVerbose(tagModel, p.history, checkFor)
	if result == porcupine.Ok {
		return
	}
	show(t, tagModel, result, info, "tags", seed)
}

// TestTagChecker_Knows the difference, on histories by hand.
func TestTagChecker_Knows(t *testing.T) {
	op := func(from, to int64, c tagCall, a tagAnswer) porcupine.Operation {
		c.tag = "a"
		return porcupine.Operation{ClientId: int(from), Input: c, Call: from, Output: a, Return: to}
	}
	push := func(d string) tagCall { return tagCall{kind: tagPush, digest: d} }
	swap := func(d, seen string) tagCall { return tagCall{kind: tagPush, digest: d, match: seen} }
	remove := func(seen string) tagCall { return tagCall{kind: tagDelete, match: seen} }
	read, done, gone, refused, unknown := tagCall{kind: tagRead}, tagAnswer{}, tagAnswer{gone: true}, tagAnswer{refused: true}, tagAnswer{unknown: true}
	got := func(d string) tagAnswer { return tagAnswer{digest: d} }
	for name, c := range map[string]struct {
		want    porcupine.CheckResult
		history []porcupine.Operation
	}{
		"one after the other":           {porcupine.Ok, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, read, got("x")), op(5, 6, remove("x"), done), op(7, 8, read, got(""))}},
		"a stale read":                  {porcupine.Illegal, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, read, got(""))}},
		"a deletion that took the next": {porcupine.Illegal, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, push("y"), done), op(5, 6, remove("x"), done)}},
		"a deletion that did nothing":   {porcupine.Illegal, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, remove(""), done), op(5, 6, read, got("x"))}},
		"a deletion of nothing":         {porcupine.Illegal, []porcupine.Operation{op(1, 2, remove(""), done)}},
		"gone, and it is not":           {porcupine.Illegal, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, remove("x"), gone)}},
		"gone":                          {porcupine.Ok, []porcupine.Operation{op(1, 2, remove("x"), gone)}},
		"refused, and it fits":          {porcupine.Illegal, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, remove("x"), refused)}},
		"refused":                       {porcupine.Ok, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 4, remove("y"), refused), op(5, 6, swap("z", "y"), refused)}},
		"two swaps of one":              {porcupine.Illegal, []porcupine.Operation{op(1, 2, push("x"), done), op(3, 9, swap("y", "x"), done), op(4, 9, swap("z", "x"), done)}},
		"made new twice": {porcupine.Illegal, []porcupine.Operation{
			op(1, 9, tagCall{kind: tagPush, digest: "x", missing: true}, done), op(2, 9, tagCall{kind: tagPush, digest: "y", missing: true}, done)}},
		"a deletion of unknown end, made":     {porcupine.Ok, []porcupine.Operation{op(1, 2, push("x"), done), op(3, never, remove("x"), unknown), op(5, 6, read, got(""))}},
		"a deletion of unknown end, not made": {porcupine.Ok, []porcupine.Operation{op(1, 2, push("x"), done), op(3, never, remove("x"), unknown), op(5, 6, read, got("x"))}},
		"one of another, made": {porcupine.Illegal, []porcupine.Operation{
			op(1, 2, push("x"), done), op(3, 4, push("y"), done), op(5, never, remove("x"), unknown), op(6, 7, read, got(""))}},
		"a push that was refused and is read": {porcupine.Illegal, []porcupine.Operation{op(1, 2, swap("y", "x"), refused), op(3, 4, read, got("y"))}},
	} {
		if result := porcupine.CheckOperationsTimeout(tagModel, c.history, checkFor); result != c.want {
			t.Errorf("%s: %s, want %s", name, result, c.want)
		}
	}
}

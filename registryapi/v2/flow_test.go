package v2

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
)

func location(t testing.TB, e exchange) string {
	t.Helper()
	u, err := e.Location()
	if err != nil {
		t.Fatalf("%s %s: %d %s: %v", e.Request.Method, e.Request.URL, e.StatusCode, e.body, err)
	}
	return u.String()
}

func TestUpload_InChunks(t *testing.T) {
	s := newSite(t)
	content := make([]byte, 100_000)
	_, _ = rand.Read(content)
	d := digest.FromBytes(content).String()

	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	if e := s.do("dev", "GET", at, nil).want(t, 204); e.Header.Get("Range") != "0-0" {
		t.Errorf("status of nothing: %q", e.Header.Get("Range"))
	}
	e := s.do("dev", "PATCH", at, bytes.NewReader(content[:40_000]), "Content-Range", "0-39999").want(t, 202)
	if got := e.Header.Get("Range"); got != "0-39999" {
		t.Errorf("range after the first chunk: %q", got)
	}
	at = location(t, e)

	for header, code := range map[string]int{"0-59999": 416, "50000-109999": 416, "40000-39999": 416, "x": 416, "40000-40010": 400} {
		e := s.do("dev", "PATCH", at, bytes.NewReader(content[40_000:]), "Content-Range", header).want(t, code)
		if code == 416 && (e.Header.Get("Range") != "0-39999" || e.Header.Get("Location") == "" || !strings.Contains(string(e.body), "RANGE_INVALID")) {
			t.Errorf("Content-Range %s: %v %s", header, e.Header, e.body)
		}
	}
	if e := s.do("dev", "GET", at, nil).want(t, 204); e.Header.Get("Range") != "0-39999" {
		t.Errorf("refused chunks left something: %q", e.Header.Get("Range"))
	}
	// Without a Content-Range, and without a length, as docker streams.
	e = s.do("dev", "PATCH", at, io.MultiReader(bytes.NewReader(content[40_000:90_000]))).want(t, 202)
	if got := e.Header.Get("Range"); got != "0-89999" {
		t.Errorf("range after the second chunk: %q", got)
	}
	s.do("dev", "PUT", location(t, e), bytes.NewReader(content[90_000:])).want(t, 400) // no digest
	e = s.do("dev", "PUT", location(t, e)+"?digest="+d, bytes.NewReader(content[90_000:]), "Content-Range", "90000-99999").want(t, 201)
	if e.Header.Get("Docker-Content-Digest") != d || !strings.HasSuffix(location(t, e), "/v2/prod/app/blobs/"+d) {
		t.Errorf("answer to the last chunk: %v", e.Header)
	}
	if got := s.do("dev", "GET", location(t, e), nil).want(t, 200); !bytes.Equal(got.body, content) {
		t.Error("the blob differs")
	}
	s.do("dev", "GET", at, nil).want(t, 404)
}

func TestUpload_Ends(t *testing.T) {
	s := newSite(t)
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	s.do("dev", "PATCH", at, strings.NewReader("some")).want(t, 202)
	s.do("guest", "DELETE", at, nil).want(t, 403)
	s.do("dev", "DELETE", at, nil).want(t, 204)
	s.do("dev", "DELETE", at, nil).want(t, 404)
	s.do("dev", "PATCH", at, strings.NewReader("more")).want(t, 404)

	// A wrong digest leaves nothing behind.
	at = location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	s.do("dev", "PATCH", at, strings.NewReader("some")).want(t, 202)
	wrong := digest.FromString("other")
	e := s.do("dev", "PUT", at+"?digest="+wrong.String(), nil).want(t, 400)
	if !strings.Contains(string(e.body), "DIGEST_INVALID") {
		t.Errorf("wrong digest: %s", e.body)
	}
	for _, d := range []digest.Digest{wrong, digest.FromString("some")} {
		s.do("dev", "HEAD", "/v2/prod/app/blobs/"+d.String(), nil).want(t, 404)
	}
}

// A client that vanishes in the middle can go on where the server stopped.
func TestUpload_GoesOnAfterACut(t *testing.T) {
	s := newSite(t)
	content := make([]byte, 300_000)
	_, _ = rand.Read(content)
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))

	broken := io.MultiReader(bytes.NewReader(content[:200_000]), cutReader{})
	if _, err := s.try("dev", "PATCH", at, broken); err == nil {
		t.Fatal("the cut request has an answer")
	}
	var offset int
	for {
		// The handler may still be writing what it got.
		e := s.do("dev", "GET", at, nil).want(t, 204)
		if _, err := fmt.Sscanf(e.Header.Get("Range"), "0-%d", &offset); err != nil {
			t.Fatal(err)
		}
		if offset > 0 {
			offset++
		}
		e = s.do("dev", "PATCH", at, bytes.NewReader(content[offset:]), "Content-Range", fmt.Sprintf("%d-%d", offset, len(content)-1))
		if e.StatusCode == 202 {
			break
		}
		if e.StatusCode != 416 && e.StatusCode != 409 {
			t.Fatalf("going on at %d: %d %s", offset, e.StatusCode, e.body)
		}
	}
	s.do("dev", "PUT", at+"?digest="+digest.FromBytes(content).String(), nil).want(t, 201)
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, errors.New("cut") }

// net/http leaves a goroutine behind that reads ranges, when the client goes: what
// it reads is closed only when it can't read any more.
func TestWatchedReader_End(t *testing.T) {
	begun, more := make(chan struct{}), make(chan struct{})
	r := &watchedReader{ReadSeeker: &slowReader{begun, more}}
	read := make(chan error, 1)
	go func() {
		_, err := r.Read(make([]byte, 1))
		read <- err
	}()
	<-begun
	ended := make(chan error, 1)
	go func() { ended <- r.end() }()
	select {
	case <-ended:
		t.Error("it ended during a read")
	default:
	}
	close(more)
	if err := <-ended; !errors.Is(err, errLink) {
		t.Errorf("the end: %v", err)
	}
	if err := <-read; !errors.Is(err, errLink) {
		t.Errorf("the read under way: %v", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a read behind the end: %v", err)
	}
	if _, err := r.Seek(0, io.SeekStart); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a seek behind the end: %v", err)
	}
}

// slowReader says that a read has begun and waits.
type slowReader struct{ begun, more chan struct{} }

func (r *slowReader) Read([]byte) (int, error) {
	close(r.begun)
	<-r.more
	return 0, errLink
}

func (r *slowReader) Seek(int64, int) (int64, error) { return 0, nil }

// What the client hears about content that is at other sites.
func TestElsewhere(t *testing.T) {
	mesh := &elsewhere{content: map[digest.Digest][]byte{}, broken: map[digest.Digest]int{}}
	s := newSite(t, func(c *Config) { c.Source, c.Claimer, c.Refresher = mesh, mesh, mesh })
	config, far, bad := []byte("{}"), bytes.Repeat([]byte("far away "), 50_000), bytes.Repeat([]byte("rotten "), 50_000)
	s.push("prod/app", config)
	for _, b := range [][]byte{far, bad} {
		mesh.content[digest.FromBytes(b)] = b
	}
	mesh.broken[digest.FromBytes(bad)] = 200_000
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(image(config, far, bad)), "Content-Type", imageType).want(t, 201)
	if len(mesh.accepted) != 1 || mesh.accepted[0] != digest.FromBytes(image(config, far, bad)) {
		t.Errorf("the mesh heard of %v", mesh.accepted)
	}
	path := "/v2/prod/app/blobs/" + digest.FromBytes(far).String()

	if e := s.do("guest", "GET", path, nil).want(t, 200); !bytes.Equal(e.body, far) || e.ContentLength != int64(len(far)) {
		t.Errorf("a blob that arrives: %d of %d bytes", len(e.body), len(far))
	}
	if e := s.do("guest", "GET", path, nil, "Range", "bytes=450-458").want(t, 206); string(e.body) != "far away " {
		t.Errorf("a range of a blob that arrives: %q", e.body)
	}
	if e := s.do("guest", "GET", path, nil, "Range", "bytes=0-3,4-7").want(t, 206); !bytes.Contains(e.body, []byte("\r\n\r\nfar \r\n")) || !bytes.Contains(e.body, []byte("\r\n\r\naway\r\n")) {
		t.Errorf("two ranges of it: %q", e.body)
	}
	if e := s.do("guest", "GET", path, nil, "Range", "bytes=0-0"+strings.Repeat(",2-2", mostRanges)).want(t, 200); !bytes.Equal(e.body, far) {
		t.Errorf("too many ranges of it: %d bytes", len(e.body))
	}
	if e := s.do("guest", "HEAD", path, nil).want(t, 200); e.ContentLength != int64(len(far)) {
		t.Errorf("its head: %v", e.Header)
	}
	// Not a byte too few may look like the whole.
	if e, err := s.try("guest", "GET", "/v2/prod/app/blobs/"+digest.FromBytes(bad).String(), nil); err == nil {
		t.Errorf("a blob that fails on its way came whole: %d bytes", len(e.body))
	}

	mesh.content, mesh.down = nil, []string{"sgp", "iad"}
	for _, method := range []string{"GET", "HEAD"} {
		e := s.do("guest", method, path, nil).want(t, 503)
		if e.Header.Get("Retry-After") != "7" {
			t.Errorf("%s: Retry-After %q", method, e.Header.Get("Retry-After"))
		}
		if method == "GET" && !strings.Contains(string(e.body), "sgp, iad") {
			t.Errorf("the sites are not named: %s", e.body)
		}
	}
	never := []byte("never pushed")
	e := s.do("dev", "PUT", "/v2/prod/app/manifests/2", bytes.NewReader(image(config, never)), "Content-Type", imageType).want(t, 400)
	for _, want := range []string{"MANIFEST_BLOB_UNKNOWN", digest.FromBytes(never).String(), "sgp, iad"} {
		if !strings.Contains(string(e.body), want) {
			t.Errorf("the answer does not say %s: %s", want, e.body)
		}
	}
	asked := mesh.asked
	e = s.do("guest", "GET", "/v2/prod/app/manifests/2", nil).want(t, 404)
	if mesh.asked != asked+1 || !strings.Contains(string(e.body), "sgp, iad") {
		t.Errorf("an unknown tag: asked %d times: %s", mesh.asked-asked, e.body)
	}
	s.do("stranger", "GET", "/v2/prod/app/manifests/2", nil).want(t, 403)
	if mesh.asked != asked+1 {
		t.Error("the mesh was asked for someone who may not see the answer")
	}

	mesh.down = nil
	s.do("guest", "GET", path, nil).want(t, 404)
	s.do("guest", "HEAD", path, nil).want(t, 404)
}

func TestManifest_LargerThanTheCatalogueKeeps(t *testing.T) {
	s := newSite(t)
	config := []byte("{}")
	s.push("prod/app", config)
	big := bytes.Replace(image(config), []byte(`"layers":[]`), fmt.Appendf(nil, `"layers":[],"annotations":{"x":%q}`, strings.Repeat("x", 100_000)), 1)
	d := digest.FromBytes(big).String()
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(big), "Content-Type", imageType).want(t, 201)
	for _, ref := range []string{"1", d} {
		e := s.do("guest", "GET", "/v2/prod/app/manifests/"+ref, nil).want(t, 200)
		if !bytes.Equal(e.body, big) || e.Header.Get("Content-Type") != imageType || e.Header.Get("Docker-Content-Digest") != d {
			t.Errorf("%s: %d bytes, %v", ref, len(e.body), e.Header)
		}
	}
	s.do("guest", "HEAD", "/v2/prod/app/manifests/1", nil).want(t, 200)
}

func TestResidency(t *testing.T) {
	s := newSite(t)
	pid := identity.NewProjectID()
	// Another site must be there before a project can be kept at it.
	other, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pub, sig := other.BoxKey()
	storeID, secret := identity.NewStoreID(), make([]byte, 32)
	s.apply(&command.TokenCreate{Site: "sgp", SecretHash: secret, ExpiresUnixNs: s.state.View().Clock().Add(1e12).UnixNano()})
	s.apply(&command.NodeJoin{TokenId: s.state.View().Tokens()[0].ID, SecretHash: secret, Site: "sgp", Node: &command.Node{Id: other.ID[:], BoxKey: pub[:], BoxSignature: sig,
		StoreId: storeID[:], Host: "127.0.0.1", GossipPort: 8946, ControlPort: 8947, DataPort: 8948, RegistryUrl: "http://127.0.0.1:6000", Level: command.Level, Version: "test"}})
	s.apply(&command.ProjectCreate{ProjectId: pid[:], Name: "far", Sites: []string{"sgp"}})
	e := s.do("admin", "POST", "/v2/far/app/blobs/uploads/", nil).want(t, 403)
	if !strings.Contains(string(e.body), "not kept at site fra: use sgp") {
		t.Errorf("a project of other sites: %s", e.body)
	}
	if !within(s.project("far"), s.project("prod")) || within(s.project("prod"), s.project("far")) {
		t.Error("what may be anywhere may be mounted where a project is kept, not the other way")
	}
}

func TestNoSpace(t *testing.T) {
	s := newSite(t)
	e := s.v2.classify(fmt.Errorf("append: %w", store.ErrNoSpace))
	if e.status != http.StatusInsufficientStorage || !strings.Contains(e.Error(), "site fra") {
		t.Errorf("a full disk: %d %s", e.status, e)
	}
}

// The client library of crane, over the token service.
func TestClient(t *testing.T) {
	s := newSite(t)
	host := strings.TrimPrefix(s.url, "http://")
	auth := remote.WithAuth(&authn.Basic{Username: "dev", Password: "pw"})
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	with := []remote.Option{auth, remote.WithTransport(transport), remote.WithContext(t.Context())}
	ref := func(r string) name.Reference {
		t.Helper()
		got, err := name.ParseReference(host+"/"+r, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}

	img, err := random.Image(50_000, 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref("prod/app:1"), img, with...); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref("prod/app:1"), with...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
	a, _ := img.Digest()
	if b, _ := got.Digest(); a != b {
		t.Errorf("digest %s became %s", a, b)
	}
	idx, err := random.Index(20_000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref("prod/multi:1"), idx, with...); err != nil {
		t.Fatal(err)
	}
	gotIdx, err := remote.Index(ref("prod/multi:1"), with...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(gotIdx); err != nil {
		t.Error(err)
	}
	// Another repository: the client mounts.
	if err := remote.Write(ref("closed/copy:1"), got, with...); err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(ref("prod/app").Context(), with...)
	if err != nil || len(tags) != 1 || tags[0] != "1" {
		t.Errorf("tags %v, %v", tags, err)
	}
	reg, err := name.NewRegistry(host, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	repos, err := remote.Catalog(t.Context(), reg, with...)
	if err != nil || strings.Join(repos, " ") != "closed/copy prod/app prod/multi" {
		t.Errorf("repositories %v, %v", repos, err)
	}
	if err := remote.Delete(ref("prod/app:1"), append(with[1:], remote.WithAuth(&authn.Basic{Username: "admin", Password: "pw"}))...); err != nil {
		t.Error(err)
	}
	if _, err := remote.Head(ref("prod/app:1"), with...); err == nil {
		t.Error("the deleted tag is still there")
	}
	if err := remote.Write(ref("library/app:1"), img, with...); err == nil || !strings.Contains(err.Error(), "DENIED") {
		t.Errorf("push without the right: %v", err)
	}
	// Anonymous, from a public project.
	admin := append(with[1:], remote.WithAuth(&authn.Basic{Username: "admin", Password: "pw"}))
	if err := remote.Write(ref("library/app:1"), img, admin...); err != nil {
		t.Fatal(err)
	}
	open, err := remote.Image(ref("library/app:1"), with[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(open); err != nil {
		t.Error(err)
	}
	if _, err := remote.Image(ref("prod/multi:1"), with[1:]...); err == nil {
		t.Error("anonymous pulled from a private project")
	}
}

// A mount with a token for the target alone leads to one for both.
func TestToken_OfAMount(t *testing.T) {
	s := newSite(t)
	d := s.push("prod/app", []byte("x"))
	post := func(scopes string) exchange {
		t.Helper()
		e := s.do("dev", "GET", "/service/token?service=portolan&scope="+scopes, nil).want(t, 200)
		token, _, _ := strings.Cut(strings.SplitN(string(e.body), `"token":"`, 2)[1], `"`)
		return s.do("", "POST", "/v2/closed/copy/blobs/uploads/?from=prod/app&mount="+d.String(), nil, "Authorization", "Bearer "+token)
	}
	e := post("repository:closed/copy:pull,push").want(t, 401)
	if got := e.Header.Get("Www-Authenticate"); !strings.Contains(got, `scope="repository:closed/copy:pull,push repository:prod/app:pull",error="insufficient_scope"`) {
		t.Errorf("challenge %s", got)
	}
	post("repository:closed/copy:pull,push+repository:prod/app:pull").want(t, 201)
}

// A revoked role is revoked for tokens that are out, too.
func TestToken_LosesItsRights(t *testing.T) {
	s := newSite(t)
	s.push("prod/app", []byte("x"))
	e := s.do("guest", "GET", "/service/token?service=portolan&scope=repository:prod/app:pull", nil).want(t, 200)
	token, _, _ := strings.Cut(strings.SplitN(string(e.body), `"token":"`, 2)[1], `"`)
	pull := func() exchange {
		t.Helper()
		return s.do("", "GET", "/v2/prod/app/blobs/"+digest.FromString("x").String(), nil, "Authorization", "Bearer "+token)
	}
	pull().want(t, 200)
	u, _ := s.state.View().User("guest")
	p := s.project("prod")
	m, _ := s.state.View().Member(p.ID, u.ID)
	s.apply(&command.MemberDelete{ProjectId: p.ID, MemberId: m.ID})
	pull().want(t, 403)
}

func TestMany(t *testing.T) {
	s := newSite(t)
	config := []byte("{}")
	s.push("prod/app", config)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			layer := bytes.Repeat(fmt.Appendf(nil, "layer %d ", i), 5000)
			d := digest.FromBytes(layer).String()
			for _, c := range []struct {
				method, path string
				body         []byte
				code         int
			}{
				{"POST", "/v2/prod/app/blobs/uploads/?digest=" + d, layer, 201},
				{"PUT", fmt.Sprintf("/v2/prod/app/manifests/t%d", i), image(config, layer), 201},
				{"GET", "/v2/prod/app/blobs/" + d, nil, 200},
				{"GET", fmt.Sprintf("/v2/prod/app/manifests/t%d", i), nil, 200},
			} {
				e, err := s.try("dev", c.method, c.path, bytes.NewReader(c.body), "Content-Type", imageType)
				if err != nil || e.StatusCode != c.code {
					t.Errorf("%s %s: %d %s %v", c.method, c.path, e.StatusCode, e.body, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if e := s.do("dev", "GET", "/v2/prod/app/tags/list", nil).want(t, 200); strings.Count(string(e.body), `"t`) != 33 {
		t.Errorf("tags: %s", e.body)
	}
}

// Sendfile needs every writer on the way to hand the file on; a wrapper that
// does not would halve the throughput without failing anything.
func TestPaced_HandsOnTheFile(t *testing.T) {
	s := newSite(t)
	big := bytes.Repeat([]byte("x"), 3*pieceBytes+5)
	d := s.push("prod/app", big)
	w := &fileSpy{header: http.Header{}}
	r, err := http.NewRequestWithContext(context.Background(), "GET", "/v2/prod/app/blobs/"+d.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("dev", "pw")
	s.v2.ServeHTTP(w, r)
	if w.n != int64(len(big)) || w.files != 4 || w.others != 0 {
		t.Errorf("%d bytes in %d pieces of the file and %d others, want %d in 4 and 0", w.n, w.files, w.others, len(big))
	}
}

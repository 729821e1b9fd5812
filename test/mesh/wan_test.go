package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

const wanPassword = "Wan-secret-1"

// farSite is a node in a site of an emulated WAN. Its clients are at the site.
type farSite struct {
	lab       *wan.Lab
	site      string
	host      string // host:port of the registry
	data      string // its directory
	transport *http.Transport
	process   *cluster.Process // that runs now
}

// startFar runs `portolan args…` in a site, on the site's address and the
// standard ports, and waits until it is ready.
func startFar(t *testing.T, lab *wan.Lab, site string, args ...string) *farSite {
	t.Helper()
	f := &farSite{lab: lab, site: site, host: lab.Addr(site) + ":5000", data: t.TempDir(), transport: &http.Transport{DialContext: lab.Dialer(site)}}
	t.Cleanup(f.transport.CloseIdleConnections)
	f.run(t, args...)
	return f
}

// run runs `portolan args…` on the site's directory, as startFar does.
func (f *farSite) run(t *testing.T, args ...string) {
	t.Helper()
	lab, site := f.lab, f.site
	args = append(args, "--data", f.data, "--advertise", lab.Addr(site), "--bind", lab.Addr(site), "--http", f.host)
	p := cluster.StartCommand(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + wanPassword},
		lab.Command(context.Background(), site, cluster.Binary(t), args...))
	f.process = p
	cluster.Eventually(t, cluster.Patience, site+" is ready", func() error {
		select {
		case <-p.Exited():
			t.Fatalf("portolan ended: %v\n%s", p.Err(), p.Output())
		default:
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.host+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{Transport: f.transport}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
}

// cli runs the command line at the site, as the administrator.
func (f *farSite) cli(t *testing.T, args ...string) cluster.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*cluster.Patience)
	defer cancel()
	return cluster.RunCommand(t, []string{"PORTOLAN_USERNAME=admin", "PORTOLAN_PASSWORD=" + wanPassword},
		f.lab.Command(ctx, f.site, cluster.Binary(t), append(args, "--server", "http://"+f.host)...))
}

func (f *farSite) ref(t *testing.T, image string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(f.host+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// options of one client command; no retries, so that an answer is the first one.
func (f *farSite) options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithTransport(f.transport),
		remote.WithAuth(&authn.Basic{Username: "admin", Password: wanPassword}),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1})}
}

func (f *farSite) push(t *testing.T, image string, img v1.Image) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
	defer cancel()
	if err := remote.Write(f.ref(t, image), img, f.options(ctx)...); err != nil {
		t.Fatalf("push of %s at %s: %v", image, f.site, err)
	}
}

// pull wants every byte of an image as it was pushed.
func (f *farSite) pull(t *testing.T, image string, want v1.Image) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
	defer cancel()
	got, err := remote.Image(f.ref(t, image), f.options(ctx)...)
	if err != nil {
		return fmt.Errorf("pull of %s at %s: %w", image, f.site, err)
	}
	for i, part := range parts(t, want) {
		have, err := part.of(got)
		if err != nil {
			return fmt.Errorf("pull of %s at %s: %s: %w", image, f.site, part.name, err)
		}
		if !bytes.Equal(have, part.bytes) {
			t.Fatalf("pull of %s at %s: part %d, %s, is %d bytes and not the %d that were pushed", image, f.site, i, part.name, len(have), len(part.bytes))
		}
	}
	return nil
}

// part is the manifest, the configuration or a layer of an image.
type part struct {
	name  string
	bytes []byte
	of    func(v1.Image) ([]byte, error)
}

func parts(t *testing.T, img v1.Image) []part {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	all := []part{
		{name: "manifest", of: func(i v1.Image) ([]byte, error) { return i.RawManifest() }},
		{name: "configuration", of: func(i v1.Image) ([]byte, error) { return i.RawConfigFile() }},
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, part{name: "layer " + d.String(), of: func(i v1.Image) ([]byte, error) {
			l, err := i.LayerByDigest(d)
			if err != nil {
				return nil, err
			}
			r, err := l.Compressed()
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return io.ReadAll(r)
		}})
	}
	for i := range all {
		if all[i].bytes, err = all[i].of(img); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestWAN_CutAndHeal: two sites 80 ms apart with uplinks of 20 Mbit/s. One joins
// the other by token, images cross, the link is cut, both go on, and when it
// heals each has what the other took in meanwhile.
func TestWAN_CutAndHeal(t *testing.T) {
	lab := wan.Start(t, wan.Topo{
		Sites:   []wan.Site{{Name: "fra", Egress: 20 * wan.Mbit}, {Name: "sgp", Egress: 20 * wan.Mbit}},
		Default: wan.Params{RTT: 80 * wan.Millisecond},
	})
	fra := startFar(t, lab, "fra", "serve", "--site", "fra")
	made := fra.cli(t, "token", "create", "--site", "sgp", "--json")
	var token struct{ Token string }
	if err := json.Unmarshal([]byte(made.Stdout), &token); err != nil || token.Token == "" {
		t.Fatalf("token create --json: %v: %s%s", err, made.Stdout, made.Stderr)
	}
	sgp := startFar(t, lab, "sgp", "join", token.Token)

	const size = 1 << 20 // bytes of a layer
	image := func() v1.Image {
		img, err := random.Image(size, 2)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	arrives := func(at *farSite, name string, img v1.Image) {
		t.Helper()
		cluster.Eventually(t, cluster.Patience, name+" is at "+at.site, func() error { return at.pull(t, name, img) })
	}
	crossed := func(from, to string) uint64 { return lab.Stats(false).Link(from, to).Bytes }

	there, back := image(), image()
	fra.push(t, "library/there:1", there)
	sgp.push(t, "library/back:1", back)
	before := crossed("fra", "sgp")
	arrives(sgp, "library/there:1", there)
	arrives(fra, "library/back:1", back)
	after := crossed("fra", "sgp")
	if after-before < 2*size {
		t.Errorf("an image of %d bytes was pulled over the WAN, and %d bytes crossed it", 2*size, after-before)
	}

	lab.Link("fra", "sgp", wan.Change{Down: new(true)})
	lab.Stats(true)
	cluster.Eventually(t, cluster.Patience, "both sites send into the cut", func() error {
		st := lab.Stats(false)
		if st.Link("fra", "sgp").DropDown == 0 || st.Link("sgp", "fra").DropDown == 0 {
			return fmt.Errorf("%+v", st.Links)
		}
		return nil
	})
	began := time.Now()
	for _, at := range []*farSite{fra, sgp} {
		for name, img := range map[string]v1.Image{"library/there:1": there, "library/back:1": back} {
			if err := at.pull(t, name, img); err != nil {
				t.Errorf("with the link cut: %v", err)
			}
		}
	}
	t.Logf("4 pulls of held images took %s with the link cut", time.Since(began).Round(time.Millisecond))
	fromFra, fromSgp := image(), image()
	fra.push(t, "library/apart-fra:1", fromFra)
	sgp.push(t, "library/apart-sgp:1", fromSgp)
	if err := sgp.pull(t, "library/apart-fra:1", fromFra); err == nil {
		t.Error("an image crossed the cut link")
	}
	if n := crossed("fra", "sgp") + crossed("sgp", "fra"); n != 0 {
		t.Errorf("%d bytes crossed the cut link", n)
	}

	// An alert sees the cut: the lag grows, and what is told of a site does not vanish.
	lags := func(at *farSite, of string, ok func(lag float64) bool) {
		t.Helper()
		cluster.Eventually(t, cluster.Patience, at.site+"'s lag behind "+of, func() error {
			lag, err := at.asker().sample(t.Context(), "portolan_transfer_lag_seconds", of)
			if err == nil && !ok(lag) {
				err = fmt.Errorf("it is %v s", lag)
			}
			for _, name := range []string{"portolan_transfer_behind_bytes", "portolan_transfer_behind_seconds"} {
				if v, merr := at.asker().sample(t.Context(), name, of); merr != nil || v != 0 { // no rule wants anything
					err = errors.Join(err, fmt.Errorf("%s is %v, %w", name, v, merr))
				}
			}
			return err
		})
	}
	const late, soon = 12, 8 // s; heads are asked for each 6
	lags(fra, "sgp", func(lag float64) bool { return lag > late })
	lags(sgp, "fra", func(lag float64) bool { return lag > late })

	lab.Heal()
	healed := time.Now()
	arrives(sgp, "library/apart-fra:1", fromFra)
	arrives(fra, "library/apart-sgp:1", fromSgp)
	lags(fra, "sgp", func(lag float64) bool { return lag < soon })
	lags(sgp, "fra", func(lag float64) bool { return lag < soon })
	t.Logf("both sites had what was pushed at the other %s after the link healed", time.Since(healed).Round(time.Millisecond))
}

// sample is what a metric says of a site; an error if it says nothing.
func (a asker) sample(ctx context.Context, name, site string) (float64, error) {
	b, err := a.want(ctx, http.MethodGet, "/metrics", "")
	if err != nil {
		return 0, err
	}
	begins := fmt.Sprintf("%s{site=%q} ", name, site)
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, begins); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("there is no %s", begins)
}

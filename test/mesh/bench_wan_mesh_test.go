package mesh

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

// layersOf is the image that is moved: 280 MB in uneven layers.
var layersOf = []int64{120e6, 70e6, 40e6, 25e6, 12e6, 8e6, 3e6, 1500e3, 400e3, 100e3}

// farMesh is a mesh whose first site has the images.
type farMesh struct {
	lab   *wan.Lab
	sites []*farSite
	rates []float64 // Mbit/s, of each site's uplink and downlink
	since use
}

// farLinks is what lies between the sites.
type farLinks struct {
	rtt        time.Duration
	loss       float64
	mtu        int                   // 0: long packets, so that what the router costs is not what is measured
	congestion string                // control; "": the machine's
	near       map[int]time.Duration // round trips to the last site, of sites that are nearer
}

func startFarMesh(t *testing.T, links farLinks, rates []float64) *farMesh {
	t.Helper()
	topo := wan.Topo{MTU: links.mtu, Default: wan.Params{RTT: wan.Duration(links.rtt), Loss: links.loss}}
	if topo.MTU == 0 {
		topo.MTU = 9000
	}
	for i := range rates {
		rates[i] *= *benchScale
		cap := wan.Rate(rates[i] * float64(wan.Mbit))
		topo.Sites = append(topo.Sites, wan.Site{Name: "s" + strconv.Itoa(i), Egress: cap, Ingress: cap})
	}
	for i, rtt := range links.near {
		topo.Links = append(topo.Links, wan.Link{A: "s" + strconv.Itoa(i), B: "s" + strconv.Itoa(len(rates)-1), Change: wan.Change{RTT: new(wan.Duration(rtt))}})
	}
	if links.congestion == "" {
		links.congestion = *benchTCP
	}
	m := &farMesh{lab: wan.Start(t, topo), rates: rates}
	var err error
	if m.since.machine, err = figures.Now(); err != nil {
		t.Fatal(err)
	}
	for i, s := range topo.Sites {
		m.lab.Sysctl(s.Name, "net.ipv4.tcp_rmem", "4096 131072 67108864")
		m.lab.Sysctl(s.Name, "net.ipv4.tcp_wmem", "4096 65536 67108864")
		if links.congestion != "" {
			m.lab.Sysctl(s.Name, "net.ipv4.tcp_congestion_control", links.congestion)
		}
		if i == 0 {
			m.sites = append(m.sites, startFar(t, m.lab, s.Name, "serve", "--site", s.Name))
			continue
		}
		var token struct{ Token string }
		made := m.sites[0].cli(t, "token", "create", "--site", s.Name, "--json")
		if err := json.Unmarshal([]byte(made.Stdout), &token); err != nil || token.Token == "" {
			t.Fatalf("token create --json: %v: %s%s", err, made.Stdout, made.Stderr)
		}
		m.sites = append(m.sites, startFar(t, m.lab, s.Name, "join", token.Token))
	}
	m.must(t, "project", "create", "prod", "--public")
	for _, s := range m.sites { // connections to all, and windows that have grown a little
		cluster.Eventually(t, cluster.Patience, "the project is known at "+s.site, func() error {
			if r := s.cli(t, "project", "show", "prod"); r.Code != 0 {
				return errors.New(r.Stderr)
			}
			return nil
		})
	}
	return m
}

func (m *farMesh) must(t *testing.T, args ...string) {
	t.Helper()
	if r := m.sites[0].cli(t, args...); r.Code != 0 {
		t.Fatalf("%v: %s%s", args, r.Stdout, r.Stderr)
	}
}

// benchImage makes an image of random layers of the sizes, scaled. It lies in
// memory as it is sent: what a client spends on compressing is not measured.
func benchImage(t *testing.T, scale float64) (v1.Image, float64) {
	t.Helper()
	img, sum := empty.Image, 0.0
	for _, size := range layersOf {
		content := make([]byte, int64(float64(size)*scale))
		_, _ = rand.Read(content) // never fails
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(content, types.DockerLayer)); err != nil {
			t.Fatal(err)
		}
		sum += float64(len(content))
	}
	if _, err := img.Digest(); err != nil { // now, and not within the measured time
		t.Fatal(err)
	}
	return img, sum
}

// bound is the least time in which n receivers can have F bytes, each site's
// rates being the part of its cap that a plain TLS flow got.
func (m *farMesh) bound(f, share float64, receivers []int) float64 {
	const bytes = 1e6 / 8
	sum, slowest := m.rates[0], m.rates[receivers[0]]
	for _, i := range receivers {
		sum += m.rates[i]
		slowest = min(slowest, m.rates[i])
	}
	return max(f/(m.rates[0]*bytes), f/(slowest*bytes), float64(len(receivers))*f/(sum*bytes)) / share
}

// metric sums the lines of a metric at a site.
func (m *farMesh) metric(t *testing.T, i int, name string) float64 {
	t.Helper()
	s := m.sites[i]
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.host+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", wanPassword)
	resp, err := (&http.Client{Transport: s.transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("metrics of %s: %s", s.site, resp.Status)
	}
	sum := 0.0
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// arrives waits until an image is at a site.
func (m *farMesh) arrives(t *testing.T, image string, i int) error {
	cmd := m.lab.Command(t.Context(), m.sites[0].site, cluster.Binary(t), "wait", image, "--sites", m.sites[i].site, "--timeout", "10m", "--server", "http://"+m.sites[0].host)
	cmd.Env = append(os.Environ(), "PORTOLAN_USERNAME=admin", "PORTOLAN_PASSWORD="+wanPassword)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s has it not: %w: %s", m.sites[i].site, err, out)
	}
	return nil
}

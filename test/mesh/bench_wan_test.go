package mesh

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

var (
	benchWAN    = flag.Bool("wan.bench", false, "measure transfers over an emulated WAN, for minutes")
	benchRun    = flag.String("wan.run", "", "the cases whose name matches this expression")
	benchRounds = flag.Int("wan.rounds", 1, "rounds of each case; the table has medians")
	benchScale  = flag.Float64("wan.scale", 1, "part of the rates and of the image: for machines that can't carry them; ratios stay what they are")
	benchOut    = flag.String("wan.out", "", "file for the results as JSON")
)

// layersOf is the image that is moved: 280 MB in uneven layers.
var layersOf = []int64{120e6, 70e6, 40e6, 25e6, 12e6, 8e6, 3e6, 1500e3, 400e3, 100e3}

// bench is one run of the cases.
type bench struct {
	t    *testing.T
	rows []*benchRow
}

// benchRow is a line of the table.
type benchRow struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Value  float64   `json:"value"` // median of All
	All    []float64 `json:"all"`
	Target string    `json:"target,omitempty"`
	Met    *bool     `json:"met,omitempty"`
	CPU    float64   `json:"cpu"` // share of the machine's processors in use, at most, 0..1
	Void   string    `json:"void,omitempty"`
	Scale  float64   `json:"scale"`

	most float64 // of the value; 0: no target
	rel  string
}

// TestBenchWAN measures what transfer promises, beside its targets: `make
// bench-wan`. A round with the machine above 75 % is void and marked so.
func TestBenchWAN(t *testing.T) {
	if !*benchWAN {
		t.Skip("measured by `make bench-wan` (-wan.bench)")
	}
	wan.Need(t)
	only, err := regexp.Compile(*benchRun)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t}
	for _, c := range []struct {
		name string
		run  func(b *bench, t *testing.T, name string)
	}{
		{"4 receivers, 100 Mbit/s, 80 ms", func(b *bench, t *testing.T, name string) { b.everywhere(t, name, slices.Repeat([]float64{100}, 5)) }},
		{"8 receivers, 40 Mbit/s, 80 ms", func(b *bench, t *testing.T, name string) { b.everywhere(t, name, slices.Repeat([]float64{40}, 9)) }},
		{"4 receivers, one at a tenth, 80 ms", func(b *bench, t *testing.T, name string) { b.everywhere(t, name, []float64{100, 100, 100, 100, 10}) }},
		{"skopeo to 4 receivers, 100 Mbit/s, 80 ms", (*bench).skopeoCase},
		{"20 clients, one cold image, 100 Mbit/s, 80 ms", (*bench).clients20},
		{"cold pull, 200 Mbit/s, 160 ms", (*bench).coldPull},
	} {
		if !only.MatchString(c.name) {
			continue
		}
		for range *benchRounds {
			t.Run(c.name, func(t *testing.T) { c.run(b, t, c.name) })
		}
	}
	b.table(t)
}

func (b *bench) skopeoCase(t *testing.T, name string) {
	b.skopeo(t, name, slices.Repeat([]float64{100}, 5))
}

// add notes a measurement. rel is "<=" or ">=", "" for no target.
func (b *bench) add(t *testing.T, st wan.Stats, name, unit string, v float64, rel string, target float64) {
	i := slices.IndexFunc(b.rows, func(r *benchRow) bool { return r.Name == name })
	if i < 0 {
		i = len(b.rows)
		b.rows = append(b.rows, &benchRow{Name: name, Unit: unit, most: target, rel: rel, Scale: *benchScale})
	}
	r := b.rows[i]
	r.All = append(r.All, v)
	r.CPU = max(r.CPU, st.MachineCPU)
	if st.MachineCPU > wan.MaxMachineCPU {
		r.Void = fmt.Sprintf("the machine was %.0f %% busy", 100*st.MachineCPU)
	} else if err := st.Trustworthy(); err != nil {
		r.Void = err.Error()
	}
	t.Logf("%s: %.3g %s (machine %.0f %%)", name, v, unit, 100*st.MachineCPU)
}

func (b *bench) table(t *testing.T) {
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "case\tmeasured\tunit\ttarget\tmet\tmachine\t")
	for _, r := range b.rows {
		all := slices.Clone(r.All)
		slices.Sort(all)
		r.Value = all[len(all)/2]
		met := ""
		if r.rel != "" {
			ok := r.Value <= r.most
			if r.rel == ">=" {
				ok = r.Value >= r.most
			}
			r.Target, r.Met = fmt.Sprintf("%s %g", r.rel, r.most), &ok
			met = map[bool]string{true: "yes", false: "NO"}[ok]
		}
		if r.Void != "" {
			met = "void: " + r.Void
		}
		fmt.Fprintf(w, "%s\t%.3g\t%s\t%s\t%s\t%.0f %%\t\n", r.Name, r.Value, r.Unit, r.Target, met, 100*r.CPU)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if *benchOut == "" {
		return
	}
	out, err := json.MarshalIndent(map[string]any{
		"cores": runtime.NumCPU(), "scale": *benchScale, "rounds": *benchRounds, "rows": b.rows,
	}, "", " ")
	if err == nil {
		err = os.WriteFile(*benchOut, append(out, '\n'), 0o644) // #nosec G306 -- a result that is committed
	}
	if err != nil {
		t.Fatal(err)
	}
}

// farMesh is a mesh whose first site has the images.
type farMesh struct {
	lab   *wan.Lab
	sites []*farSite
	rates []float64 // Mbit/s, of each site's uplink and downlink
}

func startFarMesh(t *testing.T, rtt time.Duration, rates []float64) *farMesh {
	t.Helper()
	// Long packets: what the router costs is not what is measured.
	topo := wan.Topo{MTU: 9000, Default: wan.Params{RTT: wan.Duration(rtt)}}
	for i := range rates {
		rates[i] *= *benchScale
		cap := wan.Rate(rates[i] * float64(wan.Mbit))
		topo.Sites = append(topo.Sites, wan.Site{Name: "s" + strconv.Itoa(i), Egress: cap, Ingress: cap})
	}
	m := &farMesh{lab: wan.Start(t, topo), rates: rates}
	for i, s := range topo.Sites {
		m.lab.Sysctl(s.Name, "net.ipv4.tcp_rmem", "4096 131072 67108864")
		m.lab.Sysctl(s.Name, "net.ipv4.tcp_wmem", "4096 65536 67108864")
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

// image makes random layers of the sizes, scaled.
func benchImage(t *testing.T, scale float64) (v1.Image, float64) {
	t.Helper()
	img, sum := empty.Image, 0.0
	for _, size := range layersOf {
		size = int64(float64(size) * scale)
		l, err := random.Layer(size, "application/vnd.oci.image.layer.v1.tar")
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
		n, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		sum += float64(n)
	}
	return img, sum
}

// goodput is the rate of some plain TLS flows from one site to another, in
// bytes a second.
func (m *farMesh) goodput(t *testing.T, from, to, flows int) float64 {
	t.Helper()
	const warm, count = 2 * time.Second, 4 * time.Second
	cert := selfSigned(t)
	start := time.Now()
	var wg sync.WaitGroup
	sums := make([]int64, flows)
	for i := range flows {
		l := m.lab.Listen(m.sites[to].site)
		raw, err := m.lab.Dialer(m.sites[from].site)(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		end := start.Add(warm + count)
		_ = raw.SetDeadline(end)
		_ = in.SetDeadline(end)
		out := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) // #nosec G402 -- an emulated wire
		wg.Go(func() {
			defer raw.Close()
			zeros := make([]byte, 256<<10)
			for {
				if _, err := out.Write(zeros); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			defer in.Close()
			conn := tls.Server(in, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
			buf := make([]byte, 256<<10)
			for {
				n, err := conn.Read(buf)
				if time.Since(start) > warm {
					sums[i] += int64(n)
				}
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	sum := int64(0)
	for _, s := range sums {
		sum += s
	}
	return float64(sum) / count.Seconds()
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
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

// everywhere: a push at the first site, a rule that wants it at all others.
func (b *bench) everywhere(t *testing.T, name string, rates []float64) {
	m := startFarMesh(t, 80*time.Millisecond, rates)
	share := m.goodput(t, 0, 1, 1) * 8 / 1e6 / m.rates[0]
	m.must(t, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	img, size := benchImage(t, *benchScale)
	sentBefore := m.metric(t, 0, "portolan_transfer_swarm_sent_bytes_total")
	cpuBefore := make([]float64, len(m.sites))
	for i := range m.sites {
		cpuBefore[i] = m.metric(t, i, "process_cpu_seconds_total")
	}
	m.lab.Stats(true)
	start := time.Now()
	took := make([]time.Duration, len(m.sites))
	binary := cluster.Binary(t)
	var wg sync.WaitGroup
	m.sites[0].push(t, "prod/app:1", img)
	for i := 1; i < len(m.sites); i++ {
		if m.rates[i] < m.rates[0] {
			continue // it takes the longer for its link; it is the others that are measured
		}
		wg.Go(func() {
			cmd := m.lab.Command(t.Context(), "s0", binary, "wait", "prod/app:1", "--sites", m.sites[i].site, "--timeout", "5m", "--server", "http://"+m.sites[0].host)
			cmd.Env = append(os.Environ(), "PORTOLAN_USERNAME=admin", "PORTOLAN_PASSWORD="+wanPassword)
			out, err := cmd.CombinedOutput()
			took[i] = time.Since(start)
			if err != nil {
				t.Errorf("%s has it not: %v: %s", m.sites[i].site, err, out)
			}
		})
	}
	wg.Wait()
	st := m.lab.Stats(false)
	if t.Failed() {
		return
	}
	var fast []int // those that are no slower than the source
	lastFast := time.Duration(0)
	for i := 1; i < len(took); i++ {
		if m.rates[i] >= m.rates[0] {
			fast = append(fast, i)
			lastFast = max(lastFast, took[i])
		}
	}
	cpu, came := 0.0, 0.0
	for i := range m.sites {
		cpu += m.metric(t, i, "process_cpu_seconds_total") - cpuBefore[i]
		came += m.metric(t, i, receivedMetric)
	}
	t.Logf("one TLS flow has %.1f %% of the cap; took %v; %.2f times what is needed was received; the router used %.1f s of processor time, the nodes %.1f s, in %.1f s",
		100*share, took[1:], came/size/float64(len(m.sites)-1), st.CPUSeconds, cpu, st.Seconds)
	if len(fast) < len(took)-1 {
		b.add(t, st, name+": the others' time over their bound", "x", lastFast.Seconds()/m.bound(size, share, fast), "<=", 1.4)
	} else {
		b.add(t, st, name+": time over the bound", "x", lastFast.Seconds()/m.bound(size, share, fast), "<=", 1.25)
		b.add(t, st, name+": payload that the origin sent", "F", (m.metric(t, 0, "portolan_transfer_swarm_sent_bytes_total")-sentBefore)/size, "<=", 1.15)
		b.add(t, st, name+": origin on the wire", "F", float64(st.Site("s0").EgressBytes)/size, "<=", 1.25)
	}
	b.add(t, st, name+": time of those as fast as the origin", "s", lastFast.Seconds(), "", 0)
}

// skopeo: what a push replication does, one site after the other and all at once.
func (b *bench) skopeo(t *testing.T, name string, rates []float64) {
	skopeo := clients.Need(t, "skopeo")
	m := startFarMesh(t, 80*time.Millisecond, rates)
	share := m.goodput(t, 0, 1, 1) * 8 / 1e6 / m.rates[0]
	receivers := []int{1, 2, 3, 4}
	copyTo := func(image string, i int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := m.lab.Command(ctx, "s0", skopeo, "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false",
			"--src-creds", "admin:"+wanPassword, "--dest-creds", "admin:"+wanPassword,
			"docker://"+m.sites[0].host+"/"+image, fmt.Sprintf("docker://%s/copy%d/%s", m.sites[i].host, i, strings.ReplaceAll(image, "/", "-")))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("skopeo to %s: %w: %s", m.sites[i].site, err, out)
		}
		return nil
	}
	// Projects of each receiver's own, which may rest there and at the source only,
	// so that nothing travels but what skopeo sends.
	for _, i := range receivers {
		m.must(t, "project", "create", fmt.Sprintf("copy%d", i))
	}
	for _, c := range []struct {
		how   string
		scale float64
		run   func(image string) error
	}{
		{"one after the other", 0.25, func(image string) error {
			for _, i := range receivers {
				if err := copyTo(image, i); err != nil {
					return err
				}
			}
			return nil
		}},
		{"in parallel", 0.25, func(image string) error {
			errs := make([]error, len(receivers))
			var wg sync.WaitGroup
			for at, i := range receivers {
				wg.Go(func() { errs[at] = copyTo(image, i) })
			}
			wg.Wait()
			return errors.Join(errs...)
		}},
	} {
		img, size := benchImage(t, c.scale**benchScale)
		image := "library/" + strings.ReplaceAll(c.how, " ", "-") + ":1"
		m.sites[0].push(t, image, img)
		m.lab.Stats(true)
		start := time.Now()
		if err := c.run(image); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		st := m.lab.Stats(false)
		b.add(t, st, name+", "+c.how+": time over the bound", "x", took.Seconds()/m.bound(size, share, receivers), "", 0)
		b.add(t, st, name+", "+c.how+": origin on the wire", "F", float64(st.Site("s0").EgressBytes)/size, "", 0)
	}
}

// drain pulls an image at a site and forgets it, checking digests. It gives the
// time to the first byte of a layer, too.
func (f *farSite) drain(ctx context.Context, ref string, img v1.Image) error {
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	repo, _, _ := strings.Cut(ref, ":")
	errs := make([]error, len(manifest.Layers))
	var wg sync.WaitGroup
	for i, l := range manifest.Layers {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.host+"/v2/"+repo+"/blobs/"+l.Digest.String(), nil)
			if err != nil {
				errs[i] = err
				return
			}
			req.SetBasicAuth("admin", wanPassword)
			resp, err := (&http.Client{Transport: f.transport}).Do(req)
			if err != nil {
				errs[i] = err
				return
			}
			defer resp.Body.Close()
			sum, err := v1Hash(resp.Body)
			if err == nil && (resp.StatusCode != http.StatusOK || sum != l.Digest.String()) {
				err = fmt.Errorf("%s: %s, digest %s", l.Digest, resp.Status, sum)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func v1Hash(r io.Reader) (string, error) {
	h, _, err := v1.SHA256(r)
	return h.String(), err
}

// clients20: twenty clients at one site ask for the same cold image at once.
func (b *bench) clients20(t *testing.T, name string) {
	m := startFarMesh(t, 80*time.Millisecond, []float64{100, 100})
	at := m.sites[1]
	var alone, slowest time.Duration
	var st wan.Stats
	for _, n := range []int{1, 20} {
		img, size := benchImage(t, *benchScale/4)
		image := fmt.Sprintf("prod/cold%d:1", n)
		m.sites[0].push(t, image, img)
		at.listed(t, image)
		before := m.metric(t, 1, receivedMetric)
		m.lab.Stats(true)
		start := time.Now()
		took := make([]time.Duration, n)
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				errs[i] = at.drain(t.Context(), image, img)
				took[i] = time.Since(start)
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		st = m.lab.Stats(false)
		if n == 1 {
			alone = took[0]
			continue
		}
		slowest = slices.Max(took)
		b.add(t, st, name+": payload over the WAN", "F", (m.metric(t, 1, receivedMetric)-before)/size, "<=", 1.02)
	}
	b.add(t, st, name+": slowest over one alone", "x", slowest.Seconds()/alone.Seconds(), "<=", 1.15)
}

// listed waits until a site knows an image.
func (f *farSite) listed(t *testing.T, image string) {
	t.Helper()
	cluster.Eventually(t, cluster.Patience, image+" is known at "+f.site, func() error {
		_, err := remote.Head(f.ref(t, image), f.options(t.Context())...)
		return err
	})
}

// coldPull: one client, nothing else on the links, which are long.
func (b *bench) coldPull(t *testing.T, name string) {
	const rtt = 160 * time.Millisecond
	m := startFarMesh(t, rtt, []float64{200, 200})
	four := m.goodput(t, 0, 1, 4)
	at := m.sites[1]
	img, size := benchImage(t, *benchScale)
	m.sites[0].push(t, "prod/cold:1", img)
	at.listed(t, "prod/cold:1")
	m.lab.Stats(true)
	start := time.Now()
	if err := at.drain(t.Context(), "prod/cold:1", img); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	st := m.lab.Stats(false)
	b.add(t, st, name+": goodput over that of four TLS flows", "x", size/took.Seconds()/four, ">=", 0.85)
	// The connection is up now.
	small, _ := benchImage(t, *benchScale/20)
	m.sites[0].push(t, "prod/first:1", small)
	at.listed(t, "prod/first:1")
	manifest, err := small.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m.lab.Stats(true)
	start = time.Now()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.host+"/v2/prod/first/blobs/"+manifest.Layers[0].Digest.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", wanPassword)
	resp, err := (&http.Client{Transport: at.transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	st = m.lab.Stats(false)
	b.add(t, st, name+": first byte", "RTT", first.Seconds()/rtt.Seconds(), "<=", 4)
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

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portolan/portolan/test/ports"
)

// server is one registry that runs.
type server struct {
	name  string // ours, theirs or bare
	addr  string
	auth  string         // of pushes; empty: none is asked for
	roots *x509.CertPool // nil: plain HTTP
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
	said  *os.File
	ready time.Duration // from the start to the first answer that it is ready
}

const (
	ours   = "ours"
	theirs = "theirs"

	startPatience = 60 * time.Second
	stopPatience  = 30 * time.Second
)

// certificate is what both present in the cases over TLS.
type certificate struct {
	certFile, keyFile string
	roots             *x509.CertPool
}

// newCertificate makes one for 127.0.0.1, of the kind that most sites have.
func newCertificate(dir string) (*certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:        true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	c := &certificate{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), x509.NewCertPool()}
	pemCert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if !c.roots.AppendCertsFromPEM(pemCert) {
		return nil, errors.New("the certificate just made cannot be read")
	}
	if err := os.WriteFile(c.certFile, pemCert, 0o600); err != nil {
		return nil, err
	}
	return c, os.WriteFile(c.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600)
}

// freePorts finds n ports of loopback that are free, and stay so.
func freePorts(n int) ([]int, error) {
	found := make([]int, n)
	for i := range found {
		var err error
		if found[i], err = ports.Take(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// startOurs runs `portolan serve` on dir: a new mesh of one site, or the one
// that an earlier call left there.
func (b *bench) startOurs(ctx context.Context, dir string, cert *certificate) (*server, error) {
	p, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	s := &server{name: ours, addr: fmt.Sprintf("127.0.0.1:%d", p[0]), dir: dir}
	s.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+b.password))
	args := []string{"serve", "--site", "bench", "--data", dir, "--http", s.addr, "--bind", "127.0.0.1", "--advertise", "127.0.0.1",
		"--gossip-port", strconv.Itoa(p[1]), "--control-port", strconv.Itoa(p[2]), "--data-port", strconv.Itoa(p[3]), "--log-level", "warn"}
	if cert != nil {
		args = append(args, "--tls-cert", cert.certFile, "--tls-key", cert.keyFile)
		s.roots = cert.roots
	}
	return s, s.start(ctx, "/readyz", exec.CommandContext(context.WithoutCancel(ctx), b.portolan, args...), "PORTOLAN_ADMIN_PASSWORD="+b.password)
}

// startTheirs runs distribution on dir.
func (b *bench) startTheirs(ctx context.Context, dir string, cert *certificate) (*server, error) {
	p, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	s := &server{name: theirs, addr: fmt.Sprintf("127.0.0.1:%d", p[0]), dir: dir}
	settings := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http:
  addr: %q
  secret: %q
`, dir, s.addr, b.password)
	if cert != nil {
		settings += fmt.Sprintf("  tls: {certificate: %q, key: %q}\n", cert.certFile, cert.keyFile)
		s.roots = cert.roots
	}
	file := dir + ".yml"
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		return nil, err
	}
	return s, s.start(ctx, "/v2/", exec.CommandContext(context.WithoutCancel(ctx), b.registry, "serve", file))
}

func (s *server) start(ctx context.Context, ready string, cmd *exec.Cmd, env ...string) error {
	said, err := os.Create(s.dir + ".log")
	if err != nil {
		return err
	}
	s.said = said
	cmd.Stdout, cmd.Stderr = said, said
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "PORTOLAN_") && !strings.HasPrefix(e, "REGISTRY_") && !strings.HasPrefix(e, "OTEL_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(append(cmd.Env, "OTEL_TRACES_EXPORTER=none"), env...)
	// Its own group: Ctrl-C reaches it through stop, in order. A bench that is
	// killed leaves nothing running.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(s.ended)
	}()
	c := newClient(s, false)
	defer c.close()
	deadline := time.Now().Add(startPatience)
	for {
		err := c.call(ctx, http.MethodGet, ready, http.StatusOK)
		if err == nil {
			s.ready = time.Since(begin)
			break
		}
		select {
		case <-s.ended:
			return fmt.Errorf("%s ended at once: %s", s.name, s.lastWords())
		case <-ctx.Done():
			s.stop()
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.stop()
			return fmt.Errorf("%s is not ready: %w: %s", s.name, err, s.lastWords())
		}
	}
	if s.auth == "" {
		return nil
	}
	// One login before 500 clients come at once: as with any client that has a
	// token or pushed before, the measured requests find it checked.
	l := newClient(s, true)
	defer l.close()
	return l.call(ctx, http.MethodGet, "/v2/", http.StatusOK)
}

func (s *server) lastWords() string {
	b, _ := os.ReadFile(s.said.Name())
	return string(bytes.TrimSpace(b[max(0, len(b)-2000):]))
}

// stop ends the registry.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopPatience):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	_ = s.said.Close()
}

// ticks per second of the times in /proc: USER_HZ, which Linux fixed at 100.
const ticks = 100

// cpu is the processor time that the server has used so far, in seconds.
func (s *server) cpu() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(string(b))
}

// parseCPU reads user and system time, fields 14 and 15; the second field may
// have spaces and parentheses in it.
func parseCPU(stat string) (float64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%q is not the stat of a process", stat)
	}
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	return float64(user+system) / ticks, errors.Join(err1, err2)
}

// anonymous is the server's resident memory that no file backs, in MiB.
func (s *server) anonymous() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseAnonymous(string(b))
}

func parseAnonymous(status string) (float64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return float64(kib) / 1024, err
		}
	}
	return 0, errors.New("no RssAnon in the process's status")
}

// pair are both registries, each on a directory of its own on one disk.
type pair struct {
	b            *bench
	dir          string
	ours, theirs *server
	stopped      bool
}

// inTurn is the order of a round: who goes first changes.
func inTurn(round int, more ...string) []string {
	all := append([]string{ours, theirs}, more...)
	first := round % len(all)
	return slices.Concat(all[first:], all[:first])
}

// both are the servers in the order of a round.
func (p *pair) both(round int) []*server {
	var s []*server
	for _, who := range inTurn(round) {
		s = append(s, map[string]*server{ours: p.ours, theirs: p.theirs}[who])
	}
	return s
}

// alone starts one of them on a new directory below on, for as long as do lasts.
func (b *bench) alone(ctx context.Context, who, on string, do func(*server) error) error {
	dir, err := os.MkdirTemp(on, "portolan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	start := map[string]func(context.Context, string, *certificate) (*server, error){ours: b.startOurs, theirs: b.startTheirs, bare: b.startBare}
	s, err := start[who](ctx, filepath.Join(dir, who), nil)
	if err != nil {
		return err
	}
	defer s.stop()
	return do(s)
}

// startPair starts both on new directories below on.
func (b *bench) startPair(ctx context.Context, on string, cert *certificate) (*pair, error) {
	dir, err := os.MkdirTemp(on, "portolan-bench-")
	if err != nil {
		return nil, err
	}
	p := &pair{b: b, dir: dir}
	return p, p.startIn(ctx, cert)
}

func (p *pair) startIn(ctx context.Context, cert *certificate) (err error) {
	p.stopped = false
	if p.ours, err = p.b.startOurs(ctx, filepath.Join(p.dir, ours), cert); err != nil {
		p.remove()
		return err
	}
	if p.theirs, err = p.b.startTheirs(ctx, filepath.Join(p.dir, theirs), cert); err != nil {
		p.ours.stop()
		p.remove()
		return err
	}
	return nil
}

// halt stops both and keeps what they stored.
func (p *pair) halt() {
	if p.stopped {
		return
	}
	p.stopped = true
	p.ours.stop()
	p.theirs.stop()
}

// close stops both and removes what they stored.
func (p *pair) close() {
	p.halt()
	p.remove()
}

func (p *pair) remove() { _ = os.RemoveAll(p.dir) }

func newPassword() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

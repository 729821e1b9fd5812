package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/node"
	"github.com/portolan/portolan/node/config"
)

const (
	// portsPerSite spaces the sites: registry, gossip, control, data, and room.
	portsPerSite = 10
	// maxDevSites bounds what one machine is asked to run.
	maxDevSites = 20
	// devReadyLimit bounds the start of the whole mesh. It is generous: a slow
	// disk makes a first start slow, and each wait says what it waits for.
	devReadyLimit = 3 * time.Minute
	// adminName is the first user of every mesh.
	adminName = "admin"
	// devStopLimit is how long a child may take to stop before it is killed.
	devStopLimit = 20 * time.Second
)

// devMesh is a mesh of real child processes on this machine.
type devMesh struct {
	dir      string
	basePort int
	kept     devSettings
	password string
	self     string // this binary
	out      io.Writer
	outMu    sync.Mutex

	sites []*devSite
	ended chan *devSite
	pipe  *os.File // children watch its other end: it closes when dev dies
}

type devSite struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	Data string `json:"data"`
	PID  int    `json:"pid"`

	index int
	cmd   *exec.Cmd
	err   error         // how it ended; read only after done is closed
	done  chan struct{} // nil until started
}

// devFile is DIR/dev.json.
type devFile struct {
	Sites    []*devSite `json:"sites"`
	Username string     `json:"username"`
	Password string     `json:"password"`
}

const devSettingsFile = "dev-settings.json"

// devSettings is that file: what a later start has to repeat.
type devSettings struct {
	Sites    int    `json:"sites"`
	BasePort int    `json:"base_port"`
	Password string `json:"password,omitempty"` // if it was given, not made
}

func newDevCommand() *cobra.Command {
	var (
		sites, basePort int
		dir             string
	)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole mesh on this machine, to try Portolan out",
		Long: `Run a mesh of several sites on this machine. Every site is a process of its
own ("portolan serve") on loopback: site i has its registry at the base port
plus 10·(i-1), and its gossip, control and data ports at the three after it.

When all are ready the URLs and the administrator's password are printed, and
written to DIR/dev.json. A site that is killed is not started again: the command
that does so is printed. Ctrl-C stops all; the data stays for the next start.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if sites < 1 || sites > maxDevSites {
				return fmt.Errorf("--sites %d: choose between 1 and %d", sites, maxDevSites)
			}
			if last := basePort + portsPerSite*(sites-1) + 3; basePort < 1 || last > 65535 {
				return fmt.Errorf("--base-port %d with %d sites needs ports up to %d: choose a base port between 1 and %d",
					basePort, sites, last, 65535-portsPerSite*(sites-1)-3)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runDev(ctx, cmd.OutOrStdout(), dir, sites, basePort)
		},
	}
	cmd.Flags().IntVar(&sites, "sites", 3, "how many sites")
	cmd.Flags().StringVar(&dir, "data", "data", "directory for the sites' data")
	cmd.Flags().IntVar(&basePort, "base-port", 5000, "port of the first site's registry")
	return cmd
}

func runDev(ctx context.Context, out io.Writer, dir string, sites, basePort int) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("this program's own path is unknown, so it can't start the sites: %w", err)
	}
	lock, err := config.Lock(abs)
	if err != nil {
		return err
	}
	defer lock.Close()

	m := &devMesh{dir: abs, basePort: basePort, self: self, out: out, ended: make(chan *devSite, maxDevSites)}
	if err := os.Remove(m.path("dev.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := m.settle(sites); err != nil {
		return err
	}
	watched, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	m.pipe = pipe
	defer pipe.Close()
	defer watched.Close()

	for i := range sites {
		name := "site" + strconv.Itoa(i+1)
		m.sites = append(m.sites, &devSite{
			Name: name, Data: m.path(name), index: i,
			URL: "http://127.0.0.1:" + strconv.Itoa(basePort+portsPerSite*i),
		})
	}
	defer m.stopAll()
	started := time.Now()
	if err := m.start(ctx, watched); err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C while starting
		}
		return err
	}
	m.say("ready after %s\n\n%s", time.Since(started).Round(100*time.Millisecond), m.welcome())
	return m.watch(ctx)
}

func (m *devMesh) path(name string) string { return filepath.Join(m.dir, name) }

// settle checks the wishes against what an earlier start made.
func (m *devMesh) settle(sites int) error {
	path := m.path(devSettingsFile)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(b, &m.kept); err != nil {
			return fmt.Errorf("%s can't be read: %w: remove %s to begin anew", path, err, m.dir)
		}
		if had := m.kept.BasePort; had != m.basePort {
			return fmt.Errorf("the mesh in %s has base port %d: start it with --base-port %d, or choose another --data", m.dir, had, had)
		}
		if had := m.kept.Sites; had > sites {
			return fmt.Errorf("the mesh in %s has %d sites: start it with --sites %d or more, or choose another --data", m.dir, had, had)
		}
	}
	m.kept.Sites, m.kept.BasePort = sites, m.basePort
	return m.keep()
}

// keep writes what a later start has to repeat.
func (m *devMesh) keep() error {
	b, err := json.Marshal(m.kept)
	if err != nil {
		return err
	}
	return config.WriteFile(m.path(devSettingsFile), b)
}

// start brings all sites up: those that are members at once, then new ones by
// joining, as a real site would.
func (m *devMesh) start(ctx context.Context, watched *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, devReadyLimit, fmt.Errorf("the mesh was not ready within %s: see the sites' lines above", devReadyLimit))
	defer cancel()
	var fresh []*devSite
	for i, s := range m.sites {
		_, joined, err := config.ReadFormat(s.Data)
		if err != nil {
			return err
		}
		switch {
		case joined:
			err = m.spawn(s, watched)
		case i == 0:
			err = m.spawn(s, watched, "--site", s.Name)
		default:
			fresh = append(fresh, s)
		}
		if err != nil {
			return err
		}
	}
	if err := m.ready(ctx, m.sites[0]); err != nil {
		return err
	}
	if err := m.readPassword(); err != nil {
		return err
	}
	api := client.New(m.sites[0].URL, adminName, m.password)
	for _, s := range fresh {
		// An edit needs a leader; right after a restart there may be none yet.
		token, err := eventually(ctx, func() (string, error) {
			t, err := api.CreateToken(ctx, client.TokenRequest{Site: s.Name, ExpiresIn: time.Hour})
			if err != nil {
				return "", err
			}
			return t.Token, nil
		})
		if err != nil {
			return fmt.Errorf("no token for %s: %w", s.Name, err)
		}
		if err := m.join(ctx, s, token); err != nil {
			return err
		}
		if err := m.spawn(s, watched); err != nil {
			return err
		}
	}
	for _, s := range m.sites {
		if err := m.ready(ctx, s); err != nil {
			return err
		}
	}
	if err := m.votersInPlace(ctx, api); err != nil {
		return err
	}
	b, err := json.MarshalIndent(devFile{Sites: m.sites, Username: adminName, Password: m.password}, "", "  ")
	if err != nil {
		return err
	}
	return config.WriteFile(m.path("dev.json"), append(b, '\n'))
}

// ports are the flags that place a site on this machine.
func (m *devMesh) ports(s *devSite) []string {
	p := m.basePort + portsPerSite*s.index
	return []string{
		"--data", s.Data, "--advertise", "127.0.0.1", "--bind", "127.0.0.1",
		"--http", "127.0.0.1:" + strconv.Itoa(p),
		"--gossip-port", strconv.Itoa(p + 1), "--control-port", strconv.Itoa(p + 2), "--data-port", strconv.Itoa(p + 3),
	}
}

func (m *devMesh) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, m.self, args...)
	// A group of its own: Ctrl-C on the terminal reaches dev alone, which then
	// stops the sites in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (m *devMesh) spawn(s *devSite, watched *os.File, extra ...string) error {
	// Not dev's context: a site is stopped by a signal, in order, not killed.
	cmd := m.command(context.Background(), append(append([]string{"serve", "--exit-with-parent"}, extra...), m.ports(s)...)...)
	cmd.ExtraFiles = []*os.File{watched}
	lines, err := m.lines(cmd, s.Name)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s can't be started: %w", s.Name, err)
	}
	s.cmd, s.PID, s.done = cmd, cmd.Process.Pid, make(chan struct{})
	go func() {
		lines()
		s.err = cmd.Wait()
		close(s.done)
		m.ended <- s
	}()
	return nil
}

// lines makes the command's output lines of dev's own, each with the site's
// name. The function it returns reads to the end.
func (m *devMesh) lines(cmd *exec.Cmd, name string) (func(), error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	return func() {
		w.Close() // ours; the child has its own
		defer r.Close()
		br := bufio.NewReader(r)
		for {
			line, err := br.ReadString('\n')
			if line != "" {
				m.say("%-6s| %s", name, strings.TrimSuffix(line, "\n"))
			}
			if err != nil {
				return
			}
		}
	}, nil
}

// join makes s a site of the mesh. What the command prints is of interest only
// if it fails.
func (m *devMesh) join(ctx context.Context, s *devSite, token string) error {
	cmd := m.command(ctx, append([]string{"join", token, "--no-serve"}, m.ports(s)...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s did not join (%w):\n%s", s.Name, err, bytes.TrimSpace(out))
	}
	m.say("%-6s| joined the mesh", s.Name)
	return nil
}

// ready waits until the site says so.
func (m *devMesh) ready(ctx context.Context, s *devSite) error {
	_, err := eventually(ctx, func() (struct{}, error) {
		var none struct{}
		select {
		case <-s.done:
			return none, permanent(fmt.Errorf("%s ended before it was ready: see its lines above", s.Name))
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/readyz", nil)
		if err != nil {
			return none, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return none, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return none, fmt.Errorf("%s/readyz: %s", s.URL, resp.Status)
		}
		return none, nil
	})
	return err
}

// votersInPlace waits until any one site of three may die.
func (m *devMesh) votersInPlace(ctx context.Context, api *client.Client) error {
	want := 1
	if len(m.sites) >= 3 {
		want = 3
	}
	_, err := eventually(ctx, func() (struct{}, error) {
		st, err := api.Status(ctx)
		if err == nil && len(st.Voters) < want {
			err = fmt.Errorf("%d of %d voters are in place", len(st.Voters), want)
		}
		return struct{}{}, err
	})
	return err
}

// readPassword finds the administrator's password: the one that the first start
// made and kept, or was given. One that was given is kept here, for dev.json of
// the next start.
func (m *devMesh) readPassword() error {
	made, err := os.ReadFile(filepath.Join(m.sites[0].Data, node.AdminPasswordFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.password = cmp.Or(strings.TrimSpace(string(made)), m.kept.Password, os.Getenv(node.AdminPasswordEnv))
	if m.password == "" {
		return fmt.Errorf("the administrator's password is unknown: set %s to the one that this mesh was made with", node.AdminPasswordEnv)
	}
	if len(made) == 0 && m.kept.Password == "" {
		m.kept.Password = m.password
		return m.keep()
	}
	return nil
}

func (m *devMesh) welcome() string {
	var b strings.Builder
	for _, s := range m.sites {
		fmt.Fprintf(&b, "  %s  %s\n", s.Name, s.URL)
	}
	first := strings.TrimPrefix(m.sites[0].URL, "http://")
	last := strings.TrimPrefix(m.sites[len(m.sites)-1].URL, "http://")
	fmt.Fprintf(&b, `  user %s, password %s

Try:
  docker login -u %[1]s -p %[2]s %[3]s
  docker tag IMAGE %[3]s/library/IMAGE
  docker push %[3]s/library/IMAGE
  docker pull %[4]s/library/IMAGE

  export PORTOLAN_SERVER=%[5]s PORTOLAN_USERNAME=%[1]s PORTOLAN_PASSWORD=%[2]s
  portolan status
  portolan project create prod
  portolan rule create everywhere --projects prod --sites all

`, adminName, m.password, first, last, m.sites[0].URL)
	return b.String()
}

// watch reports dead sites until it is told to stop. It stays when none is
// left: who starts them again by hand still has what dev printed.
func (m *devMesh) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			m.say("stopping the sites")
			return nil
		case s := <-m.ended:
			m.say("%s ended (%s); start it again with: %s serve --data %s", s.Name, ending(s.err), m.self, s.Data)
		}
	}
}

func ending(err error) string {
	if err == nil {
		return "stopped"
	}
	return err.Error()
}

// stopAll ends the sites that run, all at once, and waits for each.
func (m *devMesh) stopAll() {
	var wg sync.WaitGroup
	for _, s := range m.sites {
		if s.done == nil {
			continue
		}
		wg.Go(func() {
			_ = s.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-s.done:
			case <-time.After(devStopLimit):
				m.say("%s did not stop within %s and is killed", s.Name, devStopLimit)
				_ = s.cmd.Process.Kill()
				<-s.done
			}
		})
	}
	wg.Wait()
	_ = os.Remove(m.path("dev.json"))
}

func (m *devMesh) say(format string, args ...any) {
	m.outMu.Lock()
	defer m.outMu.Unlock()
	fmt.Fprintf(m.out, format+"\n", args...)
}

package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/portolan/portolan/node/identity"
)

func load(t testing.TB, env []string, args ...string) (Config, []string, error) {
	t.Helper()
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(fs, env)
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad_Precedence(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, SettingsName), "site: fra\ngossip-port: 1001\ncontrol-port: 1002\ndata-port: 1003\nhttp: :1004\n")
	write(t, filepath.Join(dir, FileName), "control-port: 2002\ndata-port: \"2003\"\nhttp: :2004\ntrusted-proxies: [10.0.0.0/8, 192.0.2.1]\n")
	cfg, warnings, err := load(t, []string{"PORTOLAN_DATA_PORT=3003", "PORTOLAN_HTTP=:3004", "PORTOLAN_BIND=", "HOME=/x"},
		"--data", dir, "--http", "127.0.0.1:4004")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if cfg.Site != "fra" || cfg.GossipPort != 1001 || cfg.ControlPort != 2002 || cfg.DataPort != 3003 || cfg.HTTP != "127.0.0.1:4004" ||
		cfg.Bind != "0.0.0.0" || cfg.LogLevel != "info" || cfg.Data != dir || cfg.Gossip() != "0.0.0.0:1001" {
		t.Fatalf("%+v", cfg)
	}
	if len(cfg.TrustedProxies) != 2 || cfg.TrustedProxies[1].String() != "192.0.2.1/32" {
		t.Fatalf("trusted proxies %v", cfg.TrustedProxies)
	}

	other := write(t, filepath.Join(t.TempDir(), "p.yaml"), "data: "+dir+"\ncontrol-port: 5002\n")
	for name, c := range map[string]struct{ env, args []string }{
		"by flag":        {nil, []string{"--config", other}},
		"by environment": {[]string{"PORTOLAN_CONFIG=" + other}, nil},
	} {
		if cfg, _, err := load(t, c.env, c.args...); err != nil || cfg.ControlPort != 5002 || cfg.Data != dir || cfg.HTTP != ":1004" {
			t.Errorf("configuration file %s: %+v, %v", name, cfg, err)
		}
	}
}

func TestLoad_Derives(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args           []string
		advertise, url string
	}{
		{[]string{"--bind", "127.0.0.1"}, "127.0.0.1", "http://127.0.0.1:5000"},
		{[]string{"--advertise", "fra.example.org"}, "fra.example.org", "http://fra.example.org:5000"},
		{[]string{"--advertise", "fra.example.org", "--http", "127.0.0.1:5010"}, "fra.example.org", "http://127.0.0.1:5010"},
		{[]string{"--advertise", "2001:db8::1", "--http", "0.0.0.0:80"}, "2001:db8::1", "http://[2001:db8::1]:80"},
		{[]string{"--advertise", "[2001:db8::1]", "--registry-url", "https://r.example.org/"}, "2001:db8::1", "https://r.example.org"},
	} {
		cfg, _, err := load(t, nil, append(c.args, "--data", dir)...)
		if err != nil || cfg.Advertise != c.advertise || cfg.RegistryURL != c.url {
			t.Errorf("%v: advertise %s, URL %s, err %v", c.args, cfg.Advertise, cfg.RegistryURL, err)
		}
	}
	cfg, _, err := load(t, nil, "--data", dir)
	if err != nil || cfg.Advertise == "" || cfg.Advertise == "0.0.0.0" {
		t.Errorf("advertise %q, err %v", cfg.Advertise, err)
	}
}

func TestLoad_Refuses(t *testing.T) {
	for name, c := range map[string]struct {
		yaml string
		env  []string
		args []string
		want string
	}{
		"an unknown key":            {yaml: "gosip-port: 1\n", want: `unknown key "gosip-port": did you mean "gossip-port"?`},
		"an underscore":             {yaml: "log_level: info\n", want: `did you mean "log-level"?`},
		"a key from nowhere":        {yaml: "frobnicate: 1\n", want: `unknown key "frobnicate": known are data, site,`},
		"not YAML":                  {yaml: "a: [\n", want: "not readable YAML"},
		"not a map":                 {yaml: "- a\n", want: "not readable YAML"},
		"keys below a key":          {yaml: "http: {addr: x}\n", want: "expected a value"},
		"data in DIR":               {yaml: "data: /x\n", want: "cannot name another one"},
		"a bad port in the file":    {yaml: "gossip-port: 70000\n", want: `portolan.yaml: gossip-port: "70000" is not a port`},
		"a bad port in a variable":  {env: []string{"PORTOLAN_DATA_PORT=x"}, want: `PORTOLAN_DATA_PORT: "x" is not a port`},
		"a bad port in a flag":      {args: []string{"--control-port", "0"}, want: `--control-port: "0" is not a port`},
		"a bad level":               {args: []string{"--log-level", "loud"}, want: "is not one of debug"},
		"a bad site":                {args: []string{"--site", "Frankfurt!"}, want: "is not a site name"},
		"a site called all":         {args: []string{"--site", "all"}, want: "means every site"},
		"an address with a port":    {args: []string{"--advertise", "a.example:7946"}, want: "leave out scheme and port"},
		"an address nobody dials":   {args: []string{"--advertise", "0.0.0.0"}, want: "no address that others can dial"},
		"HTTP without a port":       {args: []string{"--http", "localhost"}, want: "use host:port"},
		"a URL with a path":         {args: []string{"--registry-url", "http://a/b"}, want: "is not a registry's URL"},
		"a proxy by name":           {args: []string{"--trusted-proxies", "10.0.0.0/8,lb"}, want: `"lb" is not an address`},
		"one port twice":            {args: []string{"--data-port", "7946"}, want: "--gossip-port and --data-port both name port 7946"},
		"a bind address by name":    {args: []string{"--bind", "eth0"}, want: "is not an address"},
		"a blob of nothing":         {args: []string{"--max-blob-size", "0"}, want: "is not a size of a blob"},
		"a blob beyond the format":  {args: []string{"--max-blob-size", "2TiB"}, want: "is not a size of a blob"},
		"a size that is none":       {yaml: "max-blob-size: large\n", want: `max-blob-size: "large" is not a size`},
		"a scrub that ends never":   {args: []string{"--scrub-rate", "1KiB"}, want: "is no rate of the scrub"},
		"a scrub rate that is none": {args: []string{"--scrub-rate", "slow"}, want: "use 64KiB to 1TiB, such as 8MiB, or 0"},
		"no uploads":                {args: []string{"--max-uploads", "0"}, want: "is not a number of uploads"},
		"uploads without end":       {args: []string{"--max-uploads", "1000001"}, want: "use 1 to 1000000"},
		"uploads kept for seconds":  {args: []string{"--uploads-kept-for", "10s"}, want: "is not a time from 1h to 720h"},
		"a timeout without a unit":  {args: []string{"--client-timeout", "90"}, want: "use such as 90s"},
		"metrics for nobody":        {args: []string{"--metrics-for", "me"}, want: "is not one of anyone, users, admins"},
		"a share above the whole":   {args: []string{"--max-uploads", "100", "--max-uploads-per-user", "200"}, want: "more than --max-uploads"},
		"a missing file":            {args: []string{"--config", "/nowhere/p.yaml"}, want: "does not exist: correct --config"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.yaml != "" {
				write(t, filepath.Join(dir, FileName), c.yaml)
			}
			_, _, err := load(t, c.env, append(c.args, "--data", dir)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("err %v, want one with %s", err, c.want)
			}
		})
	}
	if _, _, err := load(t, nil); err == nil || !strings.Contains(err.Error(), "use --data DIR") {
		t.Errorf("no data directory: %v", err)
	}
}

func TestLoad_Limits(t *testing.T) {
	dir := t.TempDir()
	cfg, _, err := load(t, nil, "--data", dir)
	if err != nil || cfg.MaxBlobBytes != 1<<40 || cfg.MaxUploads != 10_000 || cfg.MaxUploadsPerUser != 1_000 ||
		cfg.UploadsKeptFor != 24*time.Hour || cfg.ClientTimeout != 2*time.Minute || cfg.MetricsFor != "anyone" {
		t.Fatalf("defaults: %+v, %v", cfg, err)
	}
	write(t, filepath.Join(dir, FileName), "max-blob-size: 20 GiB\nuploads-kept-for: 90m\nmetrics-for: Admins\n")
	if cfg, _, err = load(t, []string{"PORTOLAN_MAX_UPLOADS=77"}, "--data", dir, "--client-timeout", "45s", "--max-uploads-per-user", "7"); err != nil {
		t.Fatal(err)
	}
	if cfg.MaxBlobBytes != 20<<30 || cfg.UploadsKeptFor != 90*time.Minute || cfg.MetricsFor != "admins" || cfg.MaxUploads != 77 ||
		cfg.ClientTimeout != 45*time.Second || cfg.MaxUploadsPerUser != 7 {
		t.Fatalf("%+v", cfg)
	}
	for rate, want := range map[string]int64{"": 8 << 20, "20MiB": 20 << 20, "0": 0} {
		args := []string{"--data", t.TempDir()}
		if rate != "" {
			args = append(args, "--scrub-rate", rate)
		}
		if cfg, _, err := load(t, nil, args...); err != nil || cfg.ScrubRate != want {
			t.Errorf("--scrub-rate %q: %d, %v", rate, cfg.ScrubRate, err)
		}
	}
	// Few uploads need no share to be named.
	if cfg, _, err = load(t, nil, "--data", dir, "--max-uploads", "50"); err != nil || cfg.MaxUploadsPerUser != 50 {
		t.Fatalf("%d of 50 for one user, %v", cfg.MaxUploadsPerUser, err)
	}
}

// The README's table is made from the options.
func TestREADME_ListsTheOptions(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), Markdown()) {
		t.Errorf("the README's table of options is not this one:\n%s", Markdown())
	}
}

func TestLoad_Environment(t *testing.T) {
	_, warnings, err := load(t, []string{
		"PORTOLAN_SERVER=x", "PORTOLAN_USERNAME=x", "PORTOLAN_PASSWORD=x", "PORTOLAN_ADMIN_PASSWORD=x",
		"PORTOLAN_GOSIP_PORT=1", "PORTOLAN_ZZZZZZZZZZZZZZ=secret", "PORTOLAN_FOO=1", "PATH=/bin",
	}, "--data", t.TempDir())
	want := []string{
		"environment variable PORTOLAN_FOO is not known and is ignored", // the common prefix makes nothing alike
		"environment variable PORTOLAN_GOSIP_PORT is not known and is ignored: did you mean PORTOLAN_GOSSIP_PORT?",
		"environment variable PORTOLAN_ZZZZZZZZZZZZZZ is not known and is ignored",
	}
	if err != nil || !slices.Equal(warnings, want) {
		t.Fatalf("err %v, warnings %q", err, warnings)
	}
}

// The settings of a newer version are not mistaken for mistakes.
func TestLoad_OfANewerVersion(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, formatName), `{"version":99}`)
	write(t, filepath.Join(dir, SettingsName), "site: fra\nstripes: 4\n")
	if _, _, err := load(t, nil, "--data", dir); err == nil || !strings.Contains(err.Error(), "written by a newer Portolan") {
		t.Errorf("err %v", err)
	}
}

func TestConfig_Save(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	cfg, _, err := load(t, []string{"PORTOLAN_HTTP=127.0.0.1:5010"}, "--data", dir, "--site", "fra", "--gossip-port", "5011", "--log-level", "debug", "--trusted-proxies", "10.0.0.0/8,192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Save(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, SettingsName)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	b, _ := os.ReadFile(path)
	if strings.Contains(string(b), "log-level") || strings.Contains(string(b), "advertise") || strings.Contains(string(b), "control-port") {
		t.Fatalf("more was saved than was said:\n%s", b)
	}
	again, _, err := load(t, nil, "--data", dir)
	if err != nil || again.Site != "fra" || again.HTTP != cfg.HTTP || again.GossipPort != 5011 || len(again.TrustedProxies) != 2 || again.LogLevel != "info" {
		t.Fatalf("%+v, %v", again, err)
	}
	// What was saved stays saved when another thing is.
	changed, _, err := load(t, nil, "--data", dir, "--data-port", "5013")
	if err != nil {
		t.Fatal(err)
	}
	if err := changed.Save(); err != nil {
		t.Fatal(err)
	}
	if again, _, err = load(t, nil, "--data", dir); err != nil || again.DataPort != 5013 || again.GossipPort != 5011 {
		t.Fatalf("%+v, %v", again, err)
	}
	if _, _, err := load(t, nil, "--data", dir, "--site", "mum"); err == nil || !strings.Contains(err.Error(), `belongs to site "fra", not "mum"`) {
		t.Fatalf("another site: %v", err)
	}
}

// TestConfig_KeepPlace: a later start's place is kept, nothing else that it says.
func TestConfig_KeepPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	first, _, err := load(t, nil, "--data", dir, "--site", "fra", "--advertise", "fra.example.net", "--max-uploads", "77")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Save(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, SettingsName)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := first.KeepPlace(); err != nil || len(changed) != 0 {
		t.Fatalf("right after it was saved %v changed: %v", changed, err)
	}
	same, _, err := load(t, nil, "--data", dir, "--advertise", "fra.example.net", "--max-uploads", "88")
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := same.KeepPlace(); err != nil || len(changed) != 0 {
		t.Fatalf("nothing moved, and %v changed: %v", changed, err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written for nothing: %v", err)
	}
	moved, _, err := load(t, []string{"PORTOLAN_BIND=192.0.2.7"}, "--data", dir, "--advertise", "fra2.example.net", "--gossip-port", "5011", "--max-uploads", "99", "--log-level", "debug")
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := moved.KeepPlace(); err != nil || !slices.Equal(changed, []string{"advertise", "bind", "gossip-port"}) {
		t.Fatalf("%v, %v", changed, err)
	}
	again, _, err := load(t, nil, "--data", dir)
	if err != nil || again.Advertise != "fra2.example.net" || again.Bind != "192.0.2.7" || again.GossipPort != 5011 || again.Site != "fra" {
		t.Fatalf("%+v, %v", again, err)
	}
	if again.MaxUploads != 77 || again.LogLevel != "info" {
		t.Errorf("more was kept than where it is: %+v", again)
	}
}

func TestConfig_SetSite(t *testing.T) {
	cfg, _, err := load(t, nil, "--data", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.SetSite("sgp"); err != nil || cfg.Site != "sgp" {
		t.Fatal(err)
	}
	if err := cfg.SetSite("mum"); err == nil {
		t.Fatal("the site changed")
	}
	if err := cfg.Save(); err != nil {
		t.Fatal(err)
	}
	if again, _, err := load(t, nil, "--data", cfg.Data); err != nil || again.Site != "sgp" {
		t.Fatalf("%+v, %v", again, err)
	}
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	if _, ok, err := ReadFormat(dir); ok || err != nil {
		t.Fatalf("a new directory: %v, %v", ok, err)
	}
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	mesh := identity.NewMeshID()
	if err := WriteFormat(dir, mesh, id.ID); err != nil {
		t.Fatal(err)
	}
	f, ok, err := ReadFormat(dir)
	if err != nil || !ok || f.Mesh != mesh || f.Node != id.ID || f.Version != FormatVersion {
		t.Fatalf("%+v, %v, %v", f, ok, err)
	}
	if err := f.CheckMesh(dir, mesh); err != nil {
		t.Error(err)
	}
	if err := f.CheckMesh(dir, identity.NewMeshID()); err == nil || !strings.Contains(err.Error(), "belongs to mesh "+mesh.String()) {
		t.Errorf("another mesh: %v", err)
	}
	if err := f.CheckNode(dir, id.ID); err != nil {
		t.Error(err)
	}
	if err := f.CheckNode(dir, identity.NodeID{1}); err == nil {
		t.Error("another node was accepted")
	}
	for text, want := range map[string]string{
		`{"version":2,"mesh":17,"new":true}`: "was written by a newer Portolan (format 2, this one knows up to 1)",
		`{"version":0}`:                      "damaged",
		`{"version":1}`:                      "damaged",
		`{"version":1,"mesh":"x"}`:           "damaged",
		"":                                   "damaged",
	} {
		write(t, filepath.Join(dir, "format"), text)
		if _, _, err := ReadFormat(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	l, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); err == nil || !strings.Contains(err.Error(), "is in use by another process") {
		t.Fatalf("second lock: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// TestLock_TakesUnfinishedWritesAway: the key that a killed process was about to
// name does not lie about; what has another name stays, and whoever does not get
// the lock touches nothing.
func TestLock_TakesUnfinishedWritesAway(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, settings, kept := write("identity.key.tmp-123"), write(SettingsName+".tmp-4"), write("admin-password")
	l, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{key: false, settings: false, kept: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	under := write("format.tmp-5") // being written by who holds it
	if _, err := Lock(dir); err == nil {
		t.Fatal("two hold it")
	}
	if _, err := os.Stat(under); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOptions_AreDocumented(t *testing.T) {
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	AddFlags(fs)
	usage, table := fs.FlagUsages(), Markdown()
	for _, o := range Options() {
		if o.Help == "" || o.check == nil || (o.Default != "" && o.Derived != "") {
			t.Errorf("%s is not complete", o.Name)
		}
		if !strings.Contains(usage, o.Flag()+" "+o.Arg) || !strings.Contains(usage, o.Env()) {
			t.Errorf("%s is not in\n%s", o.Flag(), usage)
		}
		if !strings.Contains(table, "`"+o.Flag()+" "+o.Arg+"`") {
			t.Errorf("%s is not in\n%s", o.Flag(), table)
		}
		if v, err := o.check(o.Default); o.Default != "" && (err != nil || v != o.Default) {
			t.Errorf("default of %s: %q, %v", o.Name, v, err)
		}
	}
}

func FuzzYAML(f *testing.F) {
	f.Add("site: fra\ntrusted-proxies: [10.0.0.1, 10.0.0.0/8]\n")
	f.Add("http: {a: 1}\n? [x]\n: y\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := write(t, filepath.Join(t.TempDir(), FileName), text)
		layer, err := readFile(path, true)
		for k, v := range layer {
			o, ok := option(k)
			s, isText := v.(string)
			if !ok || !isText || s == "" {
				t.Fatalf("%s = %v (err %v)", k, v, err)
			}
			if again, err := o.check(s); err != nil || again != s {
				t.Fatalf("%s: %q becomes %q, %v", k, s, again, err)
			}
		}
	})
}

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/portolan/portolan/node/wire"
)

const (
	// FileName is the configuration file in the data directory.
	FileName = "portolan.yaml"
	// SettingsName is what [Config.Save] writes there.
	SettingsName = "settings.yaml"
	// maxFileBytes bounds a configuration file; real ones have a few lines.
	maxFileBytes = 1 << 20
)

// Config is a node's settings, all checked. Ports listen on Bind.
type Config struct {
	// Site is the site's name; empty where no source names one.
	Site string
	// Witness: the node votes and holds no content.
	Witness bool
	// Data is the absolute path of the data directory.
	Data string
	// Advertise is the name or address that other sites dial.
	Advertise string
	// HTTP is host:port of the registry; host may be empty.
	HTTP string
	// RegistryURL is the registry's URL without a slash at the end.
	RegistryURL string
	// Bind is the address of the three ports below.
	Bind                              string
	GossipPort, ControlPort, DataPort int
	// TLSCert and TLSKey are the files of the registry's certificate; both empty:
	// plain HTTP.
	TLSCert, TLSKey     string
	TrustedProxies      []netip.Prefix
	LogLevel, LogFormat string
	// MaxBlobBytes is the largest blob that is taken.
	MaxBlobBytes int64
	// MaxUploads may be open at once, and MaxUploadsPerUser of one user.
	MaxUploads, MaxUploadsPerUser int
	// UploadsKeptFor is how long an upload stays that nobody goes on with.
	UploadsKeptFor time.Duration
	// ClientTimeout is how long a client may stand still within a request.
	ClientTimeout time.Duration
	// MetricsFor says who may read /metrics: anyone, users or admins.
	MetricsFor string

	// StoreDriver names where blobs are kept: disk, or a storage driver with
	// StoreParameters, which hold secrets and are never saved.
	StoreDriver     string
	StoreParameters map[string]string
	// StoreRedirect: GETs of blobs in a bucket are answered with presigned URLs.
	StoreRedirect bool

	// ScrubRate is how many bytes a second are read again to find damaged blobs; 0:
	// none.
	ScrubRate int64

	// explicit has the values that some source named, by option.
	explicit map[string]string
	// saved has those of settings.yaml.
	saved map[string]string
}

// Gossip is the address that gossip listens on.
func (c Config) Gossip() string { return c.addr(c.GossipPort) }

// Control is the address that control traffic listens on.
func (c Config) Control() string { return c.addr(c.ControlPort) }

// Content is the address that content transfer listens on.
func (c Config) Content() string { return c.addr(c.DataPort) }

func (c Config) addr(port int) string { return net.JoinHostPort(c.Bind, strconv.Itoa(port)) }

// Load brings the sources together. flags has been parsed and has the flags of
// [AddFlags] (a command may leave some out); env is os.Environ(). The warnings
// are sentences for the log.
func Load(flags *pflag.FlagSet, env []string) (cfg Config, warnings []string, err error) {
	fromFlags, err := flagLayer(flags)
	if err != nil {
		return Config{}, nil, err
	}
	fromEnv, configFile, warnings, err := envLayer(env)
	if err != nil {
		return Config{}, nil, err
	}
	if f := flags.Lookup(optConfig); f != nil && f.Changed {
		configFile = f.Value.String()
	}
	var fromFile map[string]any
	if configFile != "" {
		if fromFile, err = readFile(configFile, true); err != nil {
			return Config{}, nil, err
		}
	}
	dir := first(optData, fromFlags, fromEnv, fromFile)
	if dir == "" {
		return Config{}, nil, errors.New("no data directory is named: use --data DIR")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return Config{}, nil, fmt.Errorf("data directory: %w", err)
	}
	if configFile == "" {
		path := filepath.Join(dir, FileName)
		if fromFile, err = readFile(path, false); err != nil {
			return Config{}, nil, err
		}
		if _, ok := fromFile[optData]; ok {
			return Config{}, nil, fmt.Errorf("%s: a file in the data directory cannot name another one: remove the key %q", path, optData)
		}
	}
	// First: the settings of a newer version may have keys that this one takes for
	// mistakes.
	if _, _, err := ReadFormat(dir); err != nil {
		return Config{}, nil, err
	}
	saved, err := readFile(filepath.Join(dir, SettingsName), false)
	if err != nil {
		return Config{}, nil, err
	}

	k := koanf.New(".")
	layers := []map[string]any{saved, fromFile, fromEnv, fromFlags}
	for _, layer := range layers {
		if err := k.Load(confmap.Provider(layer, ""), nil); err != nil {
			return Config{}, nil, fmt.Errorf("settings: %w", err)
		}
	}
	cfg = Config{Data: dir, explicit: make(map[string]string), saved: make(map[string]string)}
	for key := range saved {
		cfg.saved[key], _ = saved[key].(string)
	}
	get := func(name string) string {
		if k.Exists(name) {
			cfg.explicit[name] = k.String(name)
			return cfg.explicit[name]
		}
		o, _ := option(name)
		return o.Default
	}
	cfg.Site, cfg.HTTP, cfg.Bind = get(optSite), get("http"), get("bind")
	cfg.Witness = get(optWitness) == "true"
	cfg.Advertise, cfg.RegistryURL = get("advertise"), get("registry-url")
	// Checked texts: the conversions cannot fail.
	cfg.GossipPort, _ = strconv.Atoi(get("gossip-port"))
	cfg.ControlPort, _ = strconv.Atoi(get("control-port"))
	cfg.DataPort, _ = strconv.Atoi(get("data-port"))
	cfg.TrustedProxies, _ = parsePrefixes(get("trusted-proxies"))
	cfg.TLSCert, cfg.TLSKey = get("tls-cert"), get("tls-key")
	size, _ := parseSize(get("max-blob-size"))
	cfg.MaxBlobBytes = int64(size)
	rate, _ := parseSize(get("scrub-rate"))
	cfg.ScrubRate = int64(rate)
	cfg.MaxUploads, _ = strconv.Atoi(get("max-uploads"))
	cfg.MaxUploadsPerUser, _ = strconv.Atoi(get("max-uploads-per-user"))
	cfg.UploadsKeptFor, _ = time.ParseDuration(get("uploads-kept-for"))
	cfg.ClientTimeout, _ = time.ParseDuration(get("client-timeout"))
	cfg.MetricsFor = get("metrics-for")
	cfg.LogLevel, cfg.LogFormat = get("log-level"), get("log-format")
	cfg.StoreDriver, cfg.StoreRedirect = get(optStoreDriver), get("store-redirect") == "true"
	cfg.StoreParameters = make(map[string]string)
	for _, layer := range layers {
		text, _ := layer[optStoreParameters].(string)
		pairs, _ := parsePairs(text)
		maps.Copy(cfg.StoreParameters, pairs)
	}
	if err := cfg.validate(); err != nil {
		return Config{}, nil, err
	}
	cfg.derive()
	return cfg, warnings, nil
}

func first(key string, layers ...map[string]any) string {
	for _, l := range layers {
		if s, ok := l[key].(string); ok && s != "" {
			return s
		}
	}
	return ""
}

// validate checks what options say together.
func (c *Config) validate() error {
	if was := c.saved[optSite]; was != "" && was != c.Site {
		return fmt.Errorf("data directory %s belongs to site %q, not %q: leave out --site, or use another --data", c.Data, was, c.Site)
	}
	if was := c.saved[optWitness] == "true"; c.saved[optSite] != "" && was != c.Witness {
		kind, other := "of a node that holds content", "a witness"
		if was {
			kind, other = "of a witness", "a node that holds content"
		}
		return fmt.Errorf("data directory %s is that %s, and a node does not change its kind: join with another --data and another site name to add %s", c.Data, kind, other)
	}
	if c.Witness && (c.StoreDriver != "disk" || c.StoreRedirect) {
		return errors.New("a witness holds no content: leave out --store-driver and --store-redirect, or --witness")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("--tls-cert and --tls-key belong together: name both, or none for plain HTTP")
	}
	if _, named := c.explicit["max-uploads-per-user"]; !named {
		c.MaxUploadsPerUser = min(c.MaxUploadsPerUser, c.MaxUploads)
	}
	if c.MaxUploadsPerUser > c.MaxUploads {
		return fmt.Errorf("--max-uploads-per-user is %d, more than --max-uploads, %d: make it less", c.MaxUploadsPerUser, c.MaxUploads)
	}
	if c.StoreDriver == "disk" && len(c.StoreParameters) > 0 {
		return errors.New("--store-parameters are those of a storage driver: name one with --store-driver")
	}
	if c.StoreDriver == "disk" && c.StoreRedirect {
		return errors.New("--store-redirect needs a bucket to redirect to: name one with --store-driver")
	}
	_, http, _ := net.SplitHostPort(c.HTTP)
	httpPort, _ := strconv.Atoi(http)
	used := make(map[int]string)
	for _, p := range []struct {
		option string
		port   int
	}{{"http", httpPort}, {"gossip-port", c.GossipPort}, {"control-port", c.ControlPort}, {"data-port", c.DataPort}} {
		if other, ok := used[p.port]; ok {
			return fmt.Errorf("--%s and --%s both name port %d: choose another for one of them", other, p.option, p.port)
		}
		used[p.port] = p.option
	}
	return nil
}

// derive fills what was left open.
func (c *Config) derive() {
	if c.Advertise == "" {
		c.Advertise = wire.HostAddress().String()
		if ip, err := netip.ParseAddr(c.Bind); err == nil && !ip.IsUnspecified() {
			c.Advertise = ip.String()
		}
	}
	if c.RegistryURL == "" {
		host, port, _ := net.SplitHostPort(c.HTTP)
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = c.Advertise
		}
		scheme := "http://"
		if c.TLSCert != "" {
			scheme = "https://"
		}
		c.RegistryURL = scheme + net.JoinHostPort(host, port)
	}
}

func flagLayer(flags *pflag.FlagSet) (map[string]any, error) {
	layer := make(map[string]any)
	var errs []error
	flags.Visit(func(f *pflag.Flag) {
		if o, ok := option(f.Name); ok {
			errs = append(errs, put(layer, o, f.Value.String(), o.Flag()))
		}
	})
	return layer, errors.Join(errs...)
}

func envLayer(env []string) (layer map[string]any, configFile string, warnings []string, err error) {
	layer = make(map[string]any)
	byEnv := make(map[string]Option)
	names := append([]string{envPrefix + "CONFIG"}, foreign...)
	for _, o := range options {
		byEnv[o.Env()] = o
		names = append(names, o.Env())
	}
	var errs []error
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		o, ok := byEnv[name]
		switch {
		case ok:
			errs = append(errs, put(layer, o, value, name))
		case name == envPrefix+"CONFIG":
			configFile = value
		case !slices.Contains(names, name):
			w := fmt.Sprintf("environment variable %s is not known and is ignored", name)
			if near := nearestVariable(name, names); near != "" {
				w += fmt.Sprintf(": did you mean %s?", near)
			}
			warnings = append(warnings, w)
		}
	}
	slices.Sort(warnings)
	return layer, configFile, warnings, errors.Join(errs...)
}

// readFile reads a YAML file of options. Without required a missing file is an
// empty one.
func readFile(path string, required bool) (map[string]any, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if required {
			return nil, fmt.Errorf("configuration file %s does not exist: correct --config or $%sCONFIG", path, envPrefix)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	if st.IsDir() || st.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s is not a configuration file: expected YAML of at most %d bytes", path, maxFileBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	raw, err := yaml.Parser().Unmarshal(b)
	if err != nil {
		return nil, fmt.Errorf("%s is not readable YAML: %w", path, err)
	}
	names := make([]string, len(options))
	for i, o := range options {
		names[i] = o.Name
	}
	layer := make(map[string]any)
	var errs []error
	for _, key := range sortedKeys(raw) {
		o, ok := option(key)
		if !ok {
			if near := nearest(key, names); near != "" {
				errs = append(errs, fmt.Errorf("%s: unknown key %q: did you mean %q?", path, key, near))
			} else {
				errs = append(errs, fmt.Errorf("%s: unknown key %q: known are %s", path, key, strings.Join(names, ", ")))
			}
			continue
		}
		var text string
		if below, isMap := raw[key].(map[string]any); isMap && o.Map {
			text, err = yamlPairs(below)
		} else {
			text, err = yamlText(raw[key])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", path, key, err))
			continue
		}
		errs = append(errs, put(layer, o, text, path+": "+key))
	}
	return layer, errors.Join(errs...)
}

// yamlText brings a YAML scalar or list of scalars into the text that a flag
// would have.
func yamlText(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			s, err := yamlText(x)
			if err != nil {
				return "", err
			}
			parts[i] = s
		}
		return strings.Join(parts, ","), nil
	case map[string]any, map[any]any:
		return "", errors.New("expected a value, found keys below it")
	default:
		return fmt.Sprint(v), nil
	}
}

// put checks text and enters it. Empty text is no value: the next source has
// the word.
func put(layer map[string]any, o Option, text, source string) error {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil
	}
	v, err := o.check(text)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	layer[o.Name] = v
	return nil
}

// nearest is the known name that a typing mistake most likely meant.
func nearest(name string, known []string) string {
	best, distance := "", max(2, len(name)/3)+1
	for _, k := range known {
		if d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// nearestVariable is nearest for variables: the prefix, which all have, makes
// none of them alike.
func nearestVariable(name string, known []string) string {
	bare := make([]string, len(known))
	for i, k := range known {
		bare[i] = strings.TrimPrefix(k, envPrefix)
	}
	if near := nearest(strings.TrimPrefix(name, envPrefix), bare); near != "" {
		return envPrefix + near
	}
	return ""
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// SetSite enters the site that a join token names, as if a flag had.
func (c *Config) SetSite(name string) error {
	if _, err := SiteName(name); err != nil {
		return err
	}
	if c.Site != "" && c.Site != name {
		return fmt.Errorf("the token is for site %q, but %q is set: leave out --site", name, c.Site)
	}
	c.Site = name
	if c.explicit == nil {
		c.explicit = make(map[string]string)
	}
	c.explicit[optSite] = name
	return nil
}

// Save keeps what was set, of the options that are Saved, in the data
// directory: the next start needs --data alone. What was derived is not kept,
// so that it follows the machine.
func (c Config) Save() error {
	keep := make(map[string]any)
	for name, v := range c.explicit {
		if o, ok := option(name); ok && o.Saved {
			keep[name] = v
		}
	}
	return c.write(keep)
}

// KeepPlace is Save for a node that has moved: of what was set it keeps where the
// node is, beside what was saved before, and gives the options that changed. A
// start without them would bring the node back to where it was, and tell the
// mesh so.
func (c Config) KeepPlace() (changed []string, err error) {
	// As it is now: a join that goes on to serve has just saved it.
	keep, err := readFile(filepath.Join(c.Data, SettingsName), false)
	if err != nil || keep == nil { // without the file every start says everything
		return nil, err
	}
	for name, v := range c.explicit {
		if o, ok := option(name); ok && o.Place && keep[name] != v {
			keep[name] = v
			changed = append(changed, name)
		}
	}
	if len(changed) == 0 {
		return nil, nil
	}
	slices.Sort(changed)
	return changed, c.write(keep)
}

func (c Config) write(keep map[string]any) error {
	b, err := yaml.Parser().Marshal(keep)
	if err != nil {
		return fmt.Errorf("save the settings: %w", err)
	}
	b = append([]byte("# Written by portolan. Flags, PORTOLAN_* variables and "+FileName+" go before what stands here.\n"), b...)
	if err := WriteFile(filepath.Join(c.Data, SettingsName), b); err != nil {
		return fmt.Errorf("save the settings: %w", err)
	}
	return nil
}

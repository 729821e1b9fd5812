package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
)

// Option is one setting. Its name is that of the flag and of the key in files.
type Option struct {
	// Name is the flag without its dashes.
	Name string
	// Arg stands for the value in help texts.
	Arg string
	// Default is the value in text form; "" where there is none or where
	// Derived tells what is done instead.
	Default string
	// Derived says, for people, what stands in for an empty default.
	Derived string
	// Help is one sentence without a full stop.
	Help string
	// Saved options are kept in settings.yaml.
	Saved bool
	// Place options say where the node is: what a later start says of them is kept
	// as well, see [Config.KeepPlace].
	Place bool
	// Map options have keys of their own: the flag may be given several times, a
	// file may have them as keys below, and sources add to one another.
	Map bool
	// Switch options are true when the flag is given without a value.
	Switch bool
	// check refuses bad values and brings good ones into one form.
	check func(string) (string, error)
}

// Env is the environment variable of the option.
func (o Option) Env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(o.Name, "-", "_"))
}

// Flag is the option as it is typed.
func (o Option) Flag() string { return "--" + o.Name }

const (
	envPrefix = "PORTOLAN_"
	optConfig = "config"
	optData   = "data"
	optSite   = "site"

	optWitness = "witness"

	optStoreDriver     = "store-driver"
	optStoreParameters = "store-parameters"
)

// options is the one place where options are defined.
var options = []Option{
	{Name: optData, Arg: "DIR", check: anyText,
		Help: "directory of all that the node keeps on this machine; it restarts from it alone, but for blobs in a bucket"},
	{Name: optSite, Arg: "NAME", Saved: true, check: SiteName,
		Help: "name of the site (datacenter) that this node is in"},
	{Name: optWitness, Arg: "BOOL", Default: "false", Saved: true, Switch: true, check: oneOf("true", "false"),
		Help: "vote and hold no content: the third voter of a mesh of two datacenters; said once, at the join"},
	{Name: "advertise", Arg: "HOST", Saved: true, Place: true, check: checkHost,
		Derived: "the address of --bind, or the machine's first address that is not loopback",
		Help:    "name or address that the nodes of other sites dial"},
	{Name: "http", Arg: "ADDR", Default: ":5000", Saved: true, Place: true, check: checkListen,
		Help: "address and port of the registry and its APIs"},
	{Name: "tls-cert", Arg: "FILE", Saved: true, check: checkFile,
		Derived: "plain HTTP",
		Help:    "PEM file with the registry's certificate and its chain; a new one is taken over as soon as it is there"},
	{Name: "tls-key", Arg: "FILE", Saved: true, check: checkFile,
		Derived: "plain HTTP",
		Help:    "PEM file with the certificate's key"},
	{Name: "registry-url", Arg: "URL", Saved: true, Place: true, check: checkURL,
		Derived: "made from --http and --advertise",
		Help:    "URL at which people and other sites reach this registry"},
	{Name: "bind", Arg: "ADDR", Default: "0.0.0.0", Saved: true, Place: true, check: checkBind,
		Help: "address that the gossip, control and data ports listen on (:: for IPv6 and IPv4)"},
	{Name: "gossip-port", Arg: "PORT", Default: "7946", Saved: true, Place: true, check: checkPort,
		Help: "port of gossip between nodes (TCP and UDP)"},
	{Name: "control-port", Arg: "PORT", Default: "7947", Saved: true, Place: true, check: checkPort,
		Help: "port of control traffic between nodes (TCP)"},
	{Name: "data-port", Arg: "PORT", Default: "7948", Saved: true, Place: true, check: checkPort,
		Help: "port of content transfer between nodes (TCP)"},
	{Name: "trusted-proxies", Arg: "LIST", Saved: true, check: checkPrefixes,
		Derived: "none",
		Help:    "addresses or networks, comma-separated, whose X-Forwarded-* headers are believed"},
	{Name: "max-blob-size", Arg: "SIZE", Default: "1TiB", Saved: true, check: checkBlobSize,
		Help: "largest blob that is taken, such as 20GiB (1TiB at most)"},
	{Name: "max-uploads", Arg: "N", Default: "10000", Saved: true, check: checkUploads,
		Help: "uploads that may be open at once"},
	{Name: "max-uploads-per-user", Arg: "N", Default: "1000", Saved: true, check: checkUploads,
		Help: "of them, those of one user"},
	{Name: "uploads-kept-for", Arg: "TIME", Default: "24h", Saved: true, check: checkTime(time.Hour, 30*24*time.Hour),
		Help: "how long an upload that nobody goes on with is kept (1h to 720h)"},
	{Name: "client-timeout", Arg: "TIME", Default: "2m", Saved: true, check: checkTime(5*time.Second, time.Hour),
		Help: "how long a client may stand still within a request (5s to 1h)"},
	{Name: "metrics-for", Arg: "WHO", Default: "anyone", Saved: true, check: oneOf("anyone", "users", "admins"),
		Help: "who may read /metrics: anyone, users who log in, or admins alone"},
	{Name: optStoreDriver, Arg: "NAME", Default: "disk", check: oneOf("disk", "s3", "gcs", "azure"),
		Help: "where blobs are kept: disk (below the data directory), or a bucket: s3, gcs or azure"},
	{Name: optStoreParameters, Arg: "KEY=VALUE", Map: true, check: checkPairs,
		Derived: "none",
		Help:    "parameters of the storage driver, comma-separated or the flag several times; each may come from another source"},
	{Name: "store-redirect", Arg: "BOOL", Default: "false", check: oneOf("true", "false"),
		Help: "answer GETs of blobs that are in a bucket with a redirect to a presigned URL"},
	{Name: "scrub-rate", Arg: "SIZE", Default: "8MiB", Saved: true, check: checkScrubRate,
		Help: "bytes a second at which stored blobs are read again to find damaged ones, such as 20MiB; 0: never"},
	{Name: "log-level", Arg: "LEVEL", Default: "info", check: oneOf("debug", "info", "warn", "error"),
		Help: "least level that is logged: debug, info, warn or error"},
	{Name: "log-format", Arg: "FORMAT", Default: "text", check: oneOf("text", "json"),
		Help: "text (lines for people) or json"},
}

// foreign are variables with our prefix that other parts of Portolan read.
var foreign = []string{
	"PORTOLAN_SERVER", "PORTOLAN_USERNAME", "PORTOLAN_PASSWORD", // the CLI
	"PORTOLAN_ADMIN_PASSWORD", // the first start of a mesh
}

// Options lists all options in the order of help texts.
func Options() []Option { return append([]Option(nil), options...) }

func option(name string) (Option, bool) {
	for _, o := range options {
		if o.Name == name {
			return o, true
		}
	}
	return Option{}, false
}

// AddFlags defines the options' flags, and --config, on fs.
func AddFlags(fs *pflag.FlagSet) {
	for _, o := range options {
		help := fmt.Sprintf("%s ($%s)", o.Help, o.Env())
		if o.Derived != "" {
			help += "; if not given: " + o.Derived
		}
		f := fs.VarPF(&flagValue{o: o, text: o.Default}, o.Name, "", help)
		if o.Switch {
			f.NoOptDefVal = "true"
		}
	}
	fs.String(optConfig, "", fmt.Sprintf("YAML `FILE` with the same options as keys ($%sCONFIG); if not given: %s in the data directory", envPrefix, FileName))
}

// flagValue keeps a flag's text; [Load] checks it, in the words of all sources.
type flagValue struct {
	o    Option
	text string
	set  bool
}

func (v *flagValue) String() string { return v.text }
func (v *flagValue) Type() string   { return v.o.Arg }
func (v *flagValue) Set(s string) error {
	if v.o.Map && v.set {
		s = v.text + "," + s
	}
	v.text, v.set = s, true
	return nil
}

// Markdown is the README's table of options.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| flag and key | environment | default | meaning |\n|---|---|---|---|\n")
	for _, o := range options {
		def := o.Derived
		if o.Default != "" {
			def = "`" + o.Default + "`"
		}
		fmt.Fprintf(&b, "| `--%s %s` | `%s` | %s | %s |\n", o.Name, o.Arg, o.Env(), def, o.Help)
	}
	return b.String()
}

// siteName: a DNS label, since site names become parts of host names, metric
// labels and file names.
var siteName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// SiteName checks the name of a site and gives it back.
func SiteName(s string) (string, error) {
	if !siteName.MatchString(s) {
		return "", fmt.Errorf("%q is not a site name: use 1 to 63 lower-case letters, digits and inner hyphens", s)
	}
	if s == "all" { // in rules and `wait --sites`
		return "", errors.New(`a site cannot be called "all": that word means every site`)
	}
	return s, nil
}

// checkFile makes a path absolute: a later start may be in another directory.
func checkFile(s string) (string, error) { return filepath.Abs(s) }

func anyText(s string) (string, error) { return s, nil }

func oneOf(values ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, v := range values {
			if strings.EqualFold(v, s) {
				return v, nil
			}
		}
		return "", fmt.Errorf("%q is not one of %s", s, strings.Join(values, ", "))
	}
}

// mostBlobBytes is what the format of unit lists allows, see node/store/units.
const mostBlobBytes = 1 << 40

func checkBlobSize(s string) (string, error) {
	n, err := parseSize(s)
	if err != nil || n < 1<<20 || n > mostBlobBytes {
		return "", fmt.Errorf("%q is not a size of a blob: use 1MiB to 1TiB, such as 20GiB", s)
	}
	return formatSize(n), nil
}

// parseSize reads bytes, and the units that people use: 500MB, 20GiB.
func parseSize(s string) (uint64, error) { return humanize.ParseBytes(s) }

// formatSize writes a size in the largest unit in which it is a whole number.
func formatSize(n uint64) string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if one := uint64(1) << (40 - 10*i); n >= one && n%one == 0 {
			return strconv.FormatUint(n/one, 10) + unit
		}
	}
	return strconv.FormatUint(n, 10)
}

// checkScrubRate takes 0, which is none, or what gets somewhere.
func checkScrubRate(s string) (string, error) {
	n, err := parseSize(s)
	if err != nil || n != 0 && n < 64<<10 || n > 1<<40 {
		return "", fmt.Errorf("%q is no rate of the scrub: use 64KiB to 1TiB, such as 8MiB, or 0", s)
	}
	return formatSize(n), nil
}

// mostUploads bounds what an operator may ask for: at some 150 bytes each and a
// name in one directory, a million still is no harm.
const mostUploads = 1_000_000

func checkUploads(s string) (string, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || n > mostUploads {
		return "", fmt.Errorf("%q is not a number of uploads: use 1 to %d", s, mostUploads)
	}
	return strconv.FormatUint(n, 10), nil
}

// checkTime takes what Go's durations are written as, within bounds.
func checkTime(least, most time.Duration) func(string) (string, error) {
	return func(s string) (string, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < least || d > most {
			return "", fmt.Errorf("%q is not a time from %s to %s: use such as 90s, 5m or 24h", s, short(least), short(most))
		}
		return short(d), nil
	}
}

// short writes a duration without its zeros: 24h, not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func checkPort(s string) (string, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("%q is not a port: use a number from 1 to 65535", s)
	}
	return strconv.FormatUint(n, 10), nil
}

// hostName: letters, digits, hyphens, dots; underscores occur in internal names.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

func checkHost(s string) (string, error) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if ip.IsUnspecified() {
			return "", fmt.Errorf("%s is no address that others can dial: use a name or an address of this machine", s)
		}
		return ip.String(), nil
	}
	if !hostName.MatchString(s) {
		return "", fmt.Errorf("%q is not a host name or address: leave out scheme and port", s)
	}
	return s, nil
}

func checkBind(s string) (string, error) {
	ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return "", fmt.Errorf("%q is not an address: use one of this machine's, or 0.0.0.0 for all", s)
	}
	return ip.String(), nil
}

func checkListen(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = checkPort(port)
	}
	if err != nil {
		return "", fmt.Errorf("%q is not an address to listen on: use host:port or :port", s)
	}
	return net.JoinHostPort(host, port), nil
}

func checkURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return "", fmt.Errorf("%q is not a registry's URL: use http://HOST[:PORT] or https://HOST[:PORT]", s)
	}
	return u.Scheme + "://" + u.Host, nil
}

func checkPrefixes(s string) (string, error) {
	all, err := parsePrefixes(s)
	if err != nil {
		return "", err
	}
	out := make([]string, len(all))
	for i, p := range all {
		out[i] = p.String()
	}
	return strings.Join(out, ","), nil
}

func parsePrefixes(s string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, part := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		if p, err := netip.ParsePrefix(part); err == nil {
			all = append(all, p.Masked())
			continue
		}
		ip, err := netip.ParseAddr(part)
		if err != nil {
			return nil, fmt.Errorf("%q is not an address or network: use 10.0.0.7 or 10.0.0.0/8", part)
		}
		all = append(all, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return all, nil
}

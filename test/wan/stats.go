package wan

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Above these a run says more about the machine than about what was measured.
const (
	// MaxLate is the share of packets that may be delivered more than 1 ms late.
	MaxLate = 0.03
	// MaxMachineCPU is how busy all processors together may be, 0..1: beyond it
	// the nodes under test wait for processors and not for the network.
	MaxMachineCPU = 0.75
)

// LinkCounters count what happened on a directed link since the last reset.
type LinkCounters struct {
	Packets   uint64 `json:"packets"` // delivered
	Bytes     uint64 `json:"bytes"`   // of IP packets delivered
	DropQueue uint64 `json:"drop_queue"`
	DropLoss  uint64 `json:"drop_loss"`
	DropDown  uint64 `json:"drop_down"`
}

// SiteCounters count what happened at a site since the last reset. HostDrops and
// Late tell whether the router kept up.
type SiteCounters struct {
	EgressBytes  uint64   `json:"egress_bytes"`  // of IP packets past the egress cap
	EgressDrops  uint64   `json:"egress_drops"`  // packets dropped at the cap
	IngressBytes uint64   `json:"ingress_bytes"` // of IP packets past the ingress cap
	IngressDrops uint64   `json:"ingress_drops"` // packets dropped at the cap, or not taken by the device
	HostDrops    uint64   `json:"host_drops"`    // packets that the machine lost between the site and its wires
	Late         uint64   `json:"late"`          // packets delivered more than 1 ms late
	LateMax      Duration `json:"late_max"`
}

// LinkStatus is a directed link in Stats.
type LinkStatus struct {
	From string `json:"from"`
	To   string `json:"to"`
	Params
	LinkCounters
}

// SiteStatus is a site in Stats.
type SiteStatus struct {
	Site
	Addr     string `json:"addr"`
	Isolated bool   `json:"isolated"`
	SiteCounters
}

// Stats is what happened since the start or the last reset.
type Stats struct {
	Seconds    float64      `json:"seconds"`
	CPUSeconds float64      `json:"cpu_seconds"` // used by the router
	MachineCPU float64      `json:"machine_cpu"` // share of all processors that was not idle, time stolen by a hypervisor included, 0..1
	Sites      []SiteStatus `json:"sites"`       // in the order of the Topo
	Links      []LinkStatus `json:"links"`       // one per direction
}

// Site returns a site, and the zero value for a name that is none.
func (s Stats) Site(name string) SiteStatus {
	for _, site := range s.Sites {
		if site.Name == name {
			return site
		}
	}
	return SiteStatus{}
}

// Link returns one direction of a link, and the zero value for names that are none.
func (s Stats) Link(from, to string) LinkStatus {
	for _, l := range s.Links {
		if l.From == from && l.To == to {
			return l
		}
	}
	return LinkStatus{}
}

// Trustworthy returns nil if what was measured may be believed, and otherwise
// every reason why the run is void: then use lower rates, a larger MTU or a
// quieter machine. It knows of the machine only; loss, drops at caps and cuts
// are what the Topo asked for.
func (s Stats) Trustworthy() error {
	var void []error
	var late, packets uint64
	for _, site := range s.Sites {
		if site.HostDrops > 0 {
			void = append(void, fmt.Errorf("the machine lost %d packets of %s", site.HostDrops, site.Name))
		}
		late += site.Late
	}
	for _, l := range s.Links {
		packets += l.Packets
	}
	if share := float64(late) / float64(max(1, packets)); share > MaxLate {
		void = append(void, fmt.Errorf("%.1f %% of %d packets came more than %s late, more than %.0f %%", 100*share, packets, lateLimit, 100*MaxLate))
	}
	if s.MachineCPU > MaxMachineCPU {
		void = append(void, fmt.Errorf("the machine was %.0f %% busy, more than %.0f %%", 100*s.MachineCPU, 100*MaxMachineCPU))
	}
	return errors.Join(void...)
}

// stats returns the counters and, if asked to, zeroes them.
func (r *router) stats(reset bool) (*Stats, error) {
	used, err := usageNow()
	if err != nil {
		return nil, err
	}
	var drops [maxSites + 1]uint64
	for _, s := range r.sites {
		if drops[s.index], err = s.ns.drops(); err != nil {
			return nil, fmt.Errorf("drops of %s: %w", s.Name, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	st := &Stats{Seconds: float64(now-r.resetAt) / 1e9, CPUSeconds: used.router - r.used.router}
	if total := used.total - r.used.total; total > 0 {
		st.MachineCPU = float64(used.busy-r.used.busy) / float64(total)
	}
	for _, s := range r.sites {
		all := drops[s.index] + s.overflows
		s.HostDrops = all - s.hostDropsBase
		if st.Sites = append(st.Sites, s.SiteStatus); reset {
			s.SiteCounters, s.hostDropsBase = SiteCounters{}, all
		}
	}
	for _, l := range r.links {
		if st.Links = append(st.Links, l.LinkStatus); reset {
			l.LinkCounters = LinkCounters{}
		}
	}
	if reset {
		r.resetAt, r.used = now, used
	}
	return st, nil
}

// usage is how long processors were in use.
type usage struct {
	router      float64 // seconds, by this process
	busy, total int64   // clock ticks of all processors since the machine started
}

func usageNow() (usage, error) {
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
		return usage{}, fmt.Errorf("getrusage: %w", err)
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return usage{}, err
	}
	u := usage{router: float64(self.Utime.Nano()+self.Stime.Nano()) / 1e9}
	u.busy, u.total, err = machineTicks(b)
	return u, err
}

// machineTicks reads the first line of /proc/stat: cpu user nice system idle
// iowait irq softirq steal guest guest_nice. The guests are in user and nice.
func machineTicks(stat []byte) (busy, total int64, err error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	const ticks = 8
	if len(fields) < 1+ticks || string(fields[0]) != "cpu" {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, f := range fields[1 : 1+ticks] {
		v, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		total += v
		if i != 3 && i != 4 { // idle, iowait
			busy += v
		}
	}
	return busy, total, nil
}

package wan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
)

const (
	defaultMTU = 1500
	// minMTU is what every IPv4 host must take; maxMTU is the longest IPv4 packet.
	minMTU, maxMTU = 576, 65535
	// maxSites: the third byte of an address numbers the sites, from 1.
	maxSites = 254
)

// Topo says which sites there are and what lies between them. The zero value of
// a setting means no delay, no limit, no loss.
type Topo struct {
	MTU     int    `json:"mtu,omitempty"` // bytes, 576 to 65535; 0: 1500
	Sites   []Site `json:"sites"`
	Default Params `json:"default"` // of every link, in both directions
	Links   []Link `json:"links,omitempty"`
}

// Site describes one site. Egress and Ingress cap all its links together: they
// are its uplink and its downlink.
type Site struct {
	Name    string `json:"name"`
	Egress  Rate   `json:"egress,omitempty"`
	Ingress Rate   `json:"ingress,omitempty"`
	Queue   int    `json:"queue,omitempty"` // bytes at each cap; 0: 100 ms at the cap, at least 256 KiB
}

// Params are the settings of one direction of a link.
type Params struct {
	RTT    Duration `json:"rtt"`    // the delay of this direction is half of it
	Jitter Duration `json:"jitter"` // extra delay per packet, uniform in 0..Jitter; packets stay in order
	Rate   Rate     `json:"rate"`   // of IP packets
	Queue  int      `json:"queue"`  // bytes that wait at Rate; 0: Rate x RTT, at least 256 KiB
	Loss   float64  `json:"loss"`   // probability per packet, drawn after Rate
	Down   bool     `json:"down"`   // nothing passes, and what is on the wire is lost
}

// Change says what is to change in Params; what is nil stays.
type Change struct {
	RTT    *Duration `json:"rtt,omitempty"`
	Jitter *Duration `json:"jitter,omitempty"`
	Rate   *Rate     `json:"rate,omitempty"`
	Queue  *int      `json:"queue,omitempty"`
	Loss   *float64  `json:"loss,omitempty"`
	Down   *bool     `json:"down,omitempty"`
}

// Link changes the link from A to B and, unless OneWay, that from B to A. Those
// of a Topo are applied in order, to Default.
type Link struct {
	A      string `json:"a"`
	B      string `json:"b"`
	OneWay bool   `json:"oneway,omitempty"`
	Change
}

// siteName fits into the name of a namespace and of a path.
var siteName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,30}$`)

// ReadTopo parses a topology in JSON; example.json beside the command has one.
// Unknown names are errors.
func ReadTopo(r io.Reader) (Topo, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxRequest+1))
	if err != nil {
		return Topo{}, err
	}
	if len(b) > maxRequest {
		return Topo{}, fmt.Errorf("the topology is longer than %d bytes", maxRequest)
	}
	var t Topo
	if err := decode(b, &t); err != nil {
		return Topo{}, err
	}
	return t, t.check()
}

// check refuses what newRouter could not build.
func (t Topo) check() error {
	_, err := newRouter(t)
	return err
}

// set changes p where c says so.
func set[T any](p *T, c *T) {
	if c != nil {
		*p = *c
	}
}

// with returns p changed as c says.
func (p Params) with(c Change) Params {
	set(&p.RTT, c.RTT)
	set(&p.Jitter, c.Jitter)
	set(&p.Rate, c.Rate)
	set(&p.Queue, c.Queue)
	set(&p.Loss, c.Loss)
	set(&p.Down, c.Down)
	return p
}

func (p Params) check() error {
	switch {
	case p.RTT < 0 || p.RTT > maxDelay || p.Jitter < 0 || p.Jitter > maxDelay:
		return fmt.Errorf("rtt %s or jitter %s is outside 0..%s", p.RTT, p.Jitter, maxDelay)
	case p.Rate < 0:
		return fmt.Errorf("rate %d is negative", p.Rate)
	case p.Queue < 0:
		return fmt.Errorf("queue %d is negative", p.Queue)
	case !(p.Loss >= 0 && p.Loss <= 1): // also NaN
		return fmt.Errorf("loss %v is outside 0..1", p.Loss)
	}
	return nil
}

// decode parses one JSON value and refuses unknown fields and anything after it.
func decode(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

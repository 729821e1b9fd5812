package wan

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rate is a bit rate in bits per second; 0 is unlimited. Its text form is
// "1.5gbit", "200mbit", "64kbit" or "unlimited".
type Rate int64

// Units of rates: 200 * wan.Mbit.
const (
	Kbit Rate = 1e3
	Mbit Rate = 1e6
	Gbit Rate = 1e9
)

// UnmarshalText parses the text form; 1 bit/s to 1 Tbit/s.
func (r *Rate) UnmarshalText(b []byte) error {
	units := map[string]float64{"gbit": 1e9, "mbit": 1e6, "kbit": 1e3, "bit": 1}
	text := strings.ToLower(string(b))
	if text == "unlimited" {
		*r = 0
		return nil
	}
	number := strings.TrimRight(text, "bgikmt")
	v, err := strconv.ParseFloat(number, 64)
	v *= units[text[len(number):]]
	if err != nil || !(v >= 1 && v <= 1e12) {
		return fmt.Errorf("bad rate %q, want for example 200mbit, 1gbit or unlimited", b)
	}
	*r = Rate(v)
	return nil
}

// MarshalText gives the text form.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	return strconv.FormatFloat(float64(r)/1e6, 'f', -1, 64) + "mbit"
}

// Duration is a time.Duration with the text form "40ms".
type Duration time.Duration

// Units of durations: 80 * wan.Millisecond.
const (
	Millisecond = Duration(time.Millisecond)
	Second      = Duration(time.Second)
)

// maxDelay bounds what is on a wire, which the router keeps in memory. Nothing
// on earth is that far away.
const maxDelay = Duration(time.Minute)

// UnmarshalText parses the text form; its bounds are checked with the link.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText gives the text form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string { return time.Duration(d).String() }

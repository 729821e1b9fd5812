package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // every node knows the same zones, also on an image without them
)

// window is a span of the day, by the clock on a zone's wall.
type window struct {
	days     [7]bool // on which it opens; 0 is Sunday
	from, to int     // minutes of the day; from after to: past midnight
	zone     *time.Location
}

const (
	minutesOfDay = 24 * 60
	// lookAhead bounds the search for the next change: a window that opens on one
	// day of the week, and every transition of a zone in between.
	lookAhead = 9 * 24 * time.Hour
)

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// parseWindow reads a window; see the package's comment.
func parseWindow(s string) (window, error) {
	var w window
	words := strings.Fields(s)
	if len(words) != 3 {
		return w, fmt.Errorf(`%q is not a window: write it as "Mon-Fri 22:00-06:00 Europe/Berlin"`, s)
	}
	if err := w.parseDays(words[0]); err != nil {
		return w, err
	}
	from, to, ok := strings.Cut(words[1], "-")
	if !ok {
		return w, fmt.Errorf("%q is not a span of time: write it as 22:00-06:00", words[1])
	}
	var err error
	if w.from, err = parseMinute(from); err != nil {
		return w, err
	}
	if w.to, err = parseMinute(to); err != nil {
		return w, err
	}
	if w.from%minutesOfDay == w.to {
		return w, fmt.Errorf("%q is an empty window: for whole days write 00:00-24:00", words[1])
	}
	if w.from == minutesOfDay {
		return w, fmt.Errorf("%q begins when the day is over: write 00:00, and the day after", words[1])
	}
	if strings.EqualFold(words[2], "local") {
		return w, fmt.Errorf("%q is another time at every site: name a zone, as Europe/Berlin or UTC", words[2])
	}
	if w.zone, err = time.LoadLocation(words[2]); err != nil {
		return w, fmt.Errorf("%q is not a time zone: use a name of the IANA database, as Europe/Berlin, or UTC", words[2])
	}
	return w, nil
}

func (w *window) parseDays(s string) error {
	if strings.EqualFold(s, "daily") {
		s = "Sun-Sat"
	}
	day := func(name string) int { return slices.Index(dayNames, strings.ToLower(name)) }
	for part := range strings.SplitSeq(s, ",") {
		first, last, span := strings.Cut(part, "-")
		from, to := day(first), day(first)
		if span {
			to = day(last)
		}
		if from < 0 || to < 0 {
			return fmt.Errorf("%q names no days: use Mon-Fri, Sat,Sun or daily", s)
		}
		for d := from; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == to {
				break
			}
		}
	}
	return nil
}

// parseMinute reads a time of the day; 24:00 is its end.
func parseMinute(s string) (int, error) {
	if s == "24:00" {
		return minutesOfDay, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != len("15:04") {
		return 0, fmt.Errorf("%q is not a time of the day: write 00:00 to 24:00", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// open reports whether the window is open at t.
func (w window) open(t time.Time) bool {
	local := t.In(w.zone)
	minute, today := local.Hour()*60+local.Minute(), int(local.Weekday())
	yesterday := (today + 6) % 7
	if w.from < w.to {
		return w.days[today] && minute >= w.from && minute < w.to
	}
	return w.days[today] && minute >= w.from || w.days[yesterday] && minute < w.to
}

// edges gives instants at which the window may open or close from t on: its
// times on each day by each offset that the zone has in between, and the zone's
// own transitions. There are more of them than changes.
func (w window) edges(t time.Time) []time.Time {
	end := t.Add(lookAhead)
	var offsets []int
	var out []time.Time
	for at := t; at.Before(end); {
		_, offset := at.In(w.zone).Zone()
		offsets = append(offsets, offset)
		_, next := at.In(w.zone).ZoneBounds()
		if next.IsZero() || !next.Before(end) {
			break
		}
		out = append(out, next)
		at = next
	}
	y, m, d := t.In(w.zone).Date()
	for day := -1; day <= int(lookAhead/(24*time.Hour)); day++ {
		for _, minute := range []int{w.from, w.to} {
			for _, offset := range offsets {
				edge := time.Date(y, m, d+day, 0, minute, 0, 0, time.UTC).Add(-time.Duration(offset) * time.Second)
				if edge.After(t) {
					out = append(out, edge)
				}
			}
		}
	}
	return out
}

// windows are open when one of them is. None: always open.
type windows []window

func (ws windows) open(t time.Time) bool {
	return len(ws) == 0 || slices.ContainsFunc(ws, func(w window) bool { return w.open(t) })
}

// change gives the next instant after t at which open answers otherwise; zero:
// never.
func (ws windows) change(t time.Time) time.Time {
	var edges []time.Time
	for _, w := range ws {
		edges = append(edges, w.edges(t)...)
	}
	slices.SortFunc(edges, time.Time.Compare)
	now := ws.open(t)
	for _, at := range edges {
		if at.After(t) && ws.open(at) != now {
			return at
		}
	}
	return time.Time{}
}

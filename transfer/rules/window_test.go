package rules

import (
	"testing"
	"time"
)

// clock reads a time of UTC.
func clock(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

// Berlin is at UTC+1, from 29 March to 25 October 2026 at UTC+2. 4 March 2026 is
// a Wednesday.
func TestWindows(t *testing.T) {
	const never = ""
	for _, tc := range []struct {
		name    string
		windows []string
		at      string // UTC
		open    bool
		change  string // UTC; never
	}{
		{"none: always open", nil, "2026-03-04 12:00", true, never},
		{"in the middle of one", []string{"daily 08:00-18:00 UTC"}, "2026-03-04 12:00", true, "2026-03-04 18:00"},
		{"its first minute is in it", []string{"daily 08:00-18:00 UTC"}, "2026-03-04 08:00", true, "2026-03-04 18:00"},
		{"its end is not", []string{"daily 08:00-18:00 UTC"}, "2026-03-04 18:00", false, "2026-03-05 08:00"},
		{"days: not on this one", []string{"Mon-Tue 08:00-18:00 UTC"}, "2026-03-04 12:00", false, "2026-03-09 08:00"},
		{"days go round the week's end", []string{"Sat-Mon 08:00-18:00 UTC"}, "2026-03-08 12:00", true, "2026-03-08 18:00"},
		{"days by name, in any case", []string{"sat,WED 08:00-18:00 UTC"}, "2026-03-04 12:00", true, "2026-03-04 18:00"},
		{"all day long, next to one another: no change", []string{"daily 00:00-24:00 UTC"}, "2026-03-04 12:00", true, never},
		{"a whole day of the week", []string{"Wed 00:00-24:00 UTC"}, "2026-03-04 12:00", true, "2026-03-05 00:00"},
		{"and a week until the next", []string{"Wed 00:00-24:00 UTC"}, "2026-03-05 00:00", false, "2026-03-11 00:00"},

		{"past midnight: before it", []string{"Wed 22:00-06:00 UTC"}, "2026-03-04 23:00", true, "2026-03-05 06:00"},
		{"past midnight: after it, by the day on which it opened", []string{"Wed 22:00-06:00 UTC"}, "2026-03-05 05:59", true, "2026-03-05 06:00"},
		{"past midnight: not into the day on which it opens", []string{"Wed 22:00-06:00 UTC"}, "2026-03-04 05:59", false, "2026-03-04 22:00"},
		{"past midnight on a Saturday", []string{"Sat 22:00-06:00 UTC"}, "2026-03-08 03:00", true, "2026-03-08 06:00"},

		{"a zone has its own clock", []string{"daily 22:00-23:00 Europe/Berlin"}, "2026-03-04 21:30", true, "2026-03-04 22:00"},
		{"and its own days", []string{"Thu 00:00-01:00 Europe/Berlin"}, "2026-03-04 23:30", true, "2026-03-05 00:00"},
		{"far away", []string{"Thu 08:00-09:00 Pacific/Kiritimati"}, "2026-03-04 18:30", true, "2026-03-04 19:00"},
		{"half hours", []string{"daily 00:00-01:00 Asia/Kolkata"}, "2026-03-04 18:30", true, "2026-03-04 19:30"},

		{"summer time begins: the window is an hour earlier for the world", []string{"daily 22:00-23:00 Europe/Berlin"}, "2026-03-29 20:00", true, "2026-03-29 21:00"},
		{"it is an hour shorter if the lost hour is in it", []string{"daily 01:00-04:00 Europe/Berlin"}, "2026-03-29 00:00", true, "2026-03-29 02:00"},
		{"a window inside of the lost hour is skipped", []string{"daily 02:00-03:00 Europe/Berlin"}, "2026-03-29 00:00", false, "2026-03-30 00:00"},
		{"one that opens in the lost hour opens after it", []string{"daily 02:30-05:00 Europe/Berlin"}, "2026-03-29 00:30", false, "2026-03-29 01:00"},
		{"one that ends in the lost hour ends before it", []string{"daily 01:00-02:30 Europe/Berlin"}, "2026-03-29 00:30", true, "2026-03-29 01:00"},
		{"summer time ends: the hour that comes twice is open twice", []string{"daily 02:00-03:00 Europe/Berlin"}, "2026-10-25 00:30", true, "2026-10-25 02:00"},
		{"and a part of it, with a break", []string{"daily 02:00-02:30 Europe/Berlin"}, "2026-10-25 00:00", true, "2026-10-25 00:30"},
		{"the second time", []string{"daily 02:00-02:30 Europe/Berlin"}, "2026-10-25 00:30", false, "2026-10-25 01:00"},

		{"one of several is enough", []string{"daily 01:00-02:00 UTC", "daily 11:00-13:00 UTC"}, "2026-03-04 12:00", true, "2026-03-04 13:00"},
		{"two that touch are one", []string{"daily 10:00-12:00 UTC", "daily 12:00-14:00 UTC"}, "2026-03-04 11:00", true, "2026-03-04 14:00"},
		{"seconds count", []string{"daily 12:01-13:00 UTC"}, "2026-03-04 12:00", false, "2026-03-04 12:01"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var ws windows
			for _, s := range tc.windows {
				w, err := parseWindow(s)
				if err != nil {
					t.Fatal(err)
				}
				ws = append(ws, w)
			}
			at := clock(tc.at)
			if got := ws.open(at); got != tc.open {
				t.Errorf("open: %v, want %v", got, tc.open)
			}
			var want time.Time
			if tc.change != never {
				want = clock(tc.change)
			}
			if got := ws.change(at); !got.Equal(want) {
				t.Errorf("changes at %s, want %s", got.UTC(), want)
			}
		})
	}
}

// TestWindows_ChangeIsTheNextOne: no minute before it answers otherwise.
func TestWindows_ChangeIsTheNextOne(t *testing.T) {
	for _, text := range []string{"Mon-Fri 22:00-06:00 Europe/Berlin", "Sun 01:30-03:15 America/New_York", "daily 23:30-00:15 Australia/Lord_Howe"} {
		w, err := parseWindow(text)
		if err != nil {
			t.Fatal(err)
		}
		ws := windows{w}
		// Over both transitions of a year, in steps that meet every minute of an hour.
		for _, begin := range []string{"2026-03-06 00:00", "2026-03-27 00:00", "2026-10-02 00:00", "2026-10-23 00:00", "2026-10-30 00:00"} {
			at := clock(begin)
			for end := at.Add(72 * time.Hour); at.Before(end); at = at.Add(61 * time.Minute) {
				next := ws.change(at)
				for m := at; m.Before(next); m = m.Add(time.Minute) {
					if ws.open(m) != ws.open(at) {
						t.Fatalf("%s: at %s it changes at %s, not at %s", text, at, m, next)
					}
				}
				if next.IsZero() || ws.open(next) == ws.open(at) {
					t.Fatalf("%s: at %s there is no change at %s", text, at, next)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("Mon-Fri 22:00-06:00 Europe/Berlin", "region in (eu,us),!gpu,tier!=edge")
	f.Fuzz(func(t *testing.T, w, s string) {
		if win, err := parseWindow(w); err == nil {
			windows{win}.change(clock("2026-03-29 00:30"))
		}
		if sel, err := ParseSelector(s); err == nil && len(sel.all) == 0 {
			t.Errorf("%q chooses every site", s)
		}
	})
}

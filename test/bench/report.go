package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// target is what a row must reach.
type target struct {
	Least bool    // at least Value; else at most
	Own   bool    // of our own figure; else of the ratio to theirs
	Value float64 //
}

func ratioAtLeast(v float64) *target { return &target{Least: true, Value: v} }
func ratioAtMost(v float64) *target  { return &target{Value: v} }
func ownAtLeast(v float64) *target   { return &target{Own: true, Least: true, Value: v} }
func ownAtMost(v float64) *target    { return &target{Own: true, Value: v} }

func (t *target) String() string {
	if t == nil {
		return ""
	}
	what, rel := "ratio", "<="
	if t.Own {
		what = "ours"
	}
	if t.Least {
		rel = ">="
	}
	return fmt.Sprintf("%s %s %g", what, rel, t.Value)
}

// row is one line of the table and of the results.
type row struct {
	Name   string   `json:"name"`
	Ours   float64  `json:"ours"`             // median over the rounds
	Peer   *float64 `json:"peer"`             // null: there is nothing to compare with
	Unit   string   `json:"unit"`             //
	Ratio  *float64 `json:"ratio"`            // ours / peer
	Target string   `json:"target"`           // empty: for information
	Met    *bool    `json:"met,omitempty"`    // absent: for information
	Rounds int      `json:"rounds"`           // samples that the medians are of
	Others *float64 `json:"others,omitempty"` // share of the cores that other processes used meanwhile
}

// samples are one figure's, by server, a value for each round.
type samples map[string][]float64

func (s samples) add(on *server, v float64) { s[on.name] = append(s[on.name], v) }

// beside compares ours with another one in the place of theirs.
func (s samples) beside(who string) samples { return samples{ours: s[ours], theirs: s[who]} }

// newRow takes the medians and judges them.
func newRow(name, unit string, t *target, s samples) row {
	r := row{Name: name, Unit: unit, Ours: round(median(s[ours]), digits), Target: t.String(), Rounds: len(s[ours])}
	if len(s[theirs]) > 0 {
		peer := median(s[theirs])
		p := round(peer, digits)
		r.Peer = &p
		if peer != 0 {
			ratio := round(median(s[ours])/peer, digits)
			r.Ratio = &ratio
		}
	}
	if t == nil {
		return r
	}
	v := &r.Ours
	if !t.Own {
		v = r.Ratio
	}
	met := v != nil && (t.Least && *v >= t.Value || !t.Least && *v <= t.Value)
	r.Met = &met
	return r
}

// digits that a figure keeps: the rest is noise.
const digits = 4

func round(v float64, keep int) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	scale := math.Pow(10, float64(keep)-1-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// table prints the rows for people.
func table(w io.Writer, rows []row) error {
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "case\tours\ttheirs\tunit\tratio\ttarget\tmet\tothers")
	for _, r := range rows {
		met := ""
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*r.Met]
		}
		fmt.Fprintf(t, "%s\t%g\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Ours, number(r.Peer), r.Unit, number(r.Ratio), r.Target, met, percent(r.Others))
	}
	return t.Flush()
}

func percent(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100**v)
}

func number(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%g", *v)
}

// save writes the rows as JSON lines. With some set, rows of cases that did not
// run stay as they are in the file.
func save(path string, rows []row, some bool) error {
	if some {
		old, err := read(path)
		if err != nil {
			return err
		}
		rows = merge(old, rows)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, r := range rows {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// merge puts new rows in the places of those with the same name, others behind.
func merge(old, rows []row) []row {
	at := map[string]int{}
	for i, r := range old {
		at[r.Name] = i
	}
	for _, r := range rows {
		if i, ok := at[r.Name]; ok {
			old[i] = r
			continue
		}
		old = append(old, r)
	}
	return old
}

// read gives the rows of an earlier run; none if there was none.
func read(path string) ([]row, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rows []row
	dec := json.NewDecoder(bytes.NewReader(b))
	for {
		var r row
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		rows = append(rows, r)
	}
}

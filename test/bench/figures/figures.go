package figures

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
	"strings"
	"text/tabwriter"
)

// Target is what a figure must reach.
type Target struct {
	Least  bool // at least Value; else at most
	Value  float64
	Strict bool // a run that misses it has failed, however slow the machine is
}

// AtMost and AtLeast are the usual targets.
func AtMost(v float64) *Target { return &Target{Value: v} }

// AtLeast is for rates.
func AtLeast(v float64) *Target { return &Target{Least: true, Value: v} }

// Never is for what may not happen at all.
func Never() *Target { return &Target{Strict: true} }

// Row is one line of the table and of the results.
type Row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Unit   string   `json:"unit"`
	At     *float64 `json:"at,omitempty"`     // the target; absent: for information
	Least  bool     `json:"least,omitempty"`  // At is the least, not the most
	Met    *bool    `json:"met,omitempty"`    // absent: for information
	Strict bool     `json:"strict,omitempty"` // see Target
	Rounds int      `json:"rounds,omitempty"` // that Value is the median of; absent: it was measured once, or is void
	Asked  int      `json:"asked,omitempty"`  // rounds that it is to be the median of
	Void   bool     `json:"void,omitempty"`   // no round counts, see Note: Value is what they had, and is not judged
	Note   string   `json:"note,omitempty"`
	Others *float64 `json:"others,omitempty"` // share of the cores that other processes used meanwhile; absent: it is not known
}

// digits that a figure keeps: the rest is noise.
const digits = 4

// New judges a figure; target nil is for information.
func New(name string, value float64, unit string, target *Target, note string) Row {
	r := Row{Name: name, Value: round(value), Unit: unit, Note: note}
	if target == nil {
		return r
	}
	met := r.Value <= target.Value
	if target.Least {
		met = r.Value >= target.Value
	}
	r.At, r.Least, r.Met, r.Strict = &target.Value, target.Least, &met, target.Strict
	return r
}

// Voided gives the row as one of which no round counts.
func (r Row) Voided() Row {
	r.Void, r.Met, r.Rounds = true, nil, 0
	return r
}

// Missed reports whether there is a target and it was not reached.
func (r Row) Missed() bool { return r.Met != nil && !*r.Met }

// short says that fewer rounds count than were asked for; empty: they don't.
func (r Row) short() string {
	if r.Rounds >= r.Asked {
		return ""
	}
	return fmt.Sprintf("(%d of %d rounds)", r.Rounds, r.Asked)
}

// bound is the target in words; empty: there is none.
func (r Row) bound() string {
	if r.At == nil {
		return ""
	}
	return fmt.Sprintf("%s %g", map[bool]string{true: ">=", false: "<="}[r.Least], *r.At)
}

func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	scale := math.Pow(10, digits-1-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// Table prints rows for people.
func Table(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "case\tmeasured\tunit\ttarget\tmet\tothers\t")
	for _, r := range rows {
		met := ""
		switch {
		case r.Void:
			met = "void"
		case r.At != nil:
			met = map[bool]string{true: "NO", false: "yes"}[r.Missed()]
		}
		met = strings.TrimSpace(met + " " + r.short())
		others := ""
		if r.Others != nil {
			others = fmt.Sprintf("%.0f%%", 100**r.Others)
		}
		fmt.Fprintf(t, "%s\t%g\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Value, r.Unit, r.bound(), met, others, r.Note)
	}
	return t.Flush()
}

// Misses prints a line for each target that was missed: in a table of many rows
// one is overlooked. A missed target ends no run, as it may be the machine's fault.
func Misses(w io.Writer, rows []Row) error {
	for _, r := range rows {
		if !r.Missed() {
			continue
		}
		if _, err := fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf("missed: %s: %s, target %s %s", r.Name, strings.TrimSpace(fmt.Sprintf("%g %s", r.Value, r.Unit)), r.bound(), r.short()))); err != nil {
			return err
		}
	}
	return nil
}

// Save writes rows as JSON lines: those with the name of one in the file take its
// place, others come behind, the rest of the file stays. A void one takes the place of
// void ones only.
func Save(path string, rows []Row) error {
	all, err := Read(path)
	if err != nil {
		return err
	}
	at := map[string]int{}
	for i, r := range all {
		at[r.Name] = i
	}
	for _, r := range rows {
		if i, ok := at[r.Name]; ok {
			if !r.Void || all[i].Void {
				all[i] = r
			}
			continue
		}
		at[r.Name] = len(all)
		all = append(all, r)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, r := range all {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644) // #nosec G306 -- a result that is committed
}

// Read gives the rows of a file; none if it is not there.
func Read(path string) ([]Row, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rows []Row
	dec := json.NewDecoder(bytes.NewReader(b))
	for {
		var r Row
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		rows = append(rows, r)
	}
}

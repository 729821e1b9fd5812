package state

import (
	"iter"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state/table"
)

const (
	// maxBudgets bounds the table that each node holds: every pair of sixty sites.
	maxBudgets = 4096
	// maxMbit is one Tbit/s: beyond it a cap is a slip of the pen.
	maxMbit = 1_000_000
)

// Budget caps a link between sites. Links have a direction.
type Budget struct {
	ID      int64
	From    string // site that sends; empty: all that To takes
	To      string // site that takes; empty: all that From sends
	Mbit    uint32 // 1,000,000 bits a second
	Version uint64
}

// Pause is a site to which rules bring nothing until people resume it.
type Pause struct {
	Site string
	At   time.Time
	By   string // actor
}

// traffic is part of View: what people say of the links. Sites are named, as in
// rules: what is said holds again for a new site of that name.
type traffic struct {
	budgets *table.Tree[Budget] // by budgetKey
	pauses  *table.Tree[Pause]  // by site
}

func newTraffic() traffic {
	return traffic{budgets: table.New[Budget](), pauses: table.New[Pause]()}
}

func (t *traffic) trees() []building { return []building{t.budgets, t.pauses} }

// budgetKey is unique: no name has a zero byte.
func budgetKey(from, to string) []byte { return []byte(from + "\x00" + to) }

func (v *View) putBudget(b Budget) {
	v.budgets, _, _ = v.budgets.Insert(budgetKey(b.From, b.To), b)
}

func (v *View) putPause(p Pause) { v.pauses, _, _ = v.pauses.Insert([]byte(p.Site), p) }

// Budget finds the cap on a link; from or to may be empty, see [Budget].
func (v *View) Budget(from, to string) (Budget, bool) { return v.budgets.Get(budgetKey(from, to)) }

// Budgets yields all caps, by sender and receiver.
func (v *View) Budgets() iter.Seq[Budget] { return all(v.budgets, nil) }

// Paused says whether people stopped what rules bring to a site, and who did.
func (v *View) Paused(site string) (Pause, bool) { return v.pauses.Get([]byte(site)) }

// Pauses yields the paused sites, by name.
func (v *View) Pauses() iter.Seq[Pause] { return all(v.pauses, nil) }

func (v *View) budgetSet(m *command.BudgetSet) (int64, error) {
	from, to := m.GetFrom(), m.GetTo()
	old, there := v.Budget(from, to)
	if err := checkVersion("budget", old.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	if m.GetMbit() == 0 { // also of sites that are gone
		v.budgets, _, _ = v.budgets.Delete(budgetKey(from, to))
		return old.ID, nil
	}
	switch {
	case from == "" && to == "":
		return 0, refuse(command.CodeInvalid, "a budget needs the site that sends, the one that takes, or both")
	case from == to:
		return 0, refuse(command.CodeInvalid, "a budget from %s to itself caps nothing: name two sites, or one", clip(from))
	case m.GetMbit() > maxMbit:
		return 0, refuse(command.CodeInvalid, "a budget is 1 to %d Mbit/s, not %d", maxMbit, m.GetMbit())
	case !there && v.budgets.Len() >= maxBudgets:
		return 0, refuse(command.CodeConflict, "there are %d budgets, as many as are possible: delete some", maxBudgets)
	}
	for _, site := range []string{from, to} {
		if _, ok := v.Site(site); !ok && site != "" {
			return 0, refuse(command.CodeNotFound, "there is no site %q: see the sites with: portolan site list", clip(site))
		}
	}
	b := Budget{ID: old.ID, From: from, To: to, Mbit: m.GetMbit(), Version: old.Version + 1}
	if !there {
		b.ID = v.newID()
	}
	v.putBudget(b)
	return b.ID, nil
}

func (v *View) sitePause(actor string, m *command.SitePause) (int64, error) {
	s, ok := v.Site(m.GetSite())
	_, paused := v.Paused(m.GetSite())
	switch {
	case !m.GetPaused(): // also of a site that is gone
		v.pauses, _, _ = v.pauses.Delete([]byte(m.GetSite()))
	case !ok:
		return 0, refuse(command.CodeNotFound, "there is no site %q: see the sites with: portolan site list", clip(m.GetSite()))
	case !paused: // again is as good as once
		v.putPause(Pause{Site: s.Name, At: v.now(), By: clip(actor)})
	}
	return s.ID, nil
}

// trafficRecords yields the snapshot's rows of budgets and pauses.
func (v *View) trafficRecords(yield func(*Record) bool) bool {
	for b := range v.Budgets() {
		if !yield(&Record{Row: &Record_Budget{&BudgetRow{Id: b.ID, From: b.From, To: b.To, Mbit: b.Mbit, Version: b.Version}}}) {
			return false
		}
	}
	for p := range v.Pauses() {
		if !yield(&Record{Row: &Record_Pause{&PauseRow{Site: p.Site, PausedUnixNs: toNanos(p.At), PausedBy: p.By}}}) {
			return false
		}
	}
	return true
}

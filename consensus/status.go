package consensus

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// Status is how this node sees the control plane.
type Status struct {
	Role        string          // "voter" or "learner"; "none" before it was added
	IsLeader    bool            // this node leads
	Leader      identity.NodeID // zero: none is known
	LeaderSite  string
	Term        uint64
	Index       uint64        // last entry in this node's log
	Applied     uint64        // last entry that this node's state has; on an idle mesh it equals Index
	LastContact time.Duration // since the leader was heard; 0 at the leader, -1: never
	// Voters and Learners are as a majority has them: a change that is not
	// committed yet might be lost with one node.
	Voters   []identity.NodeID
	Learners []identity.NodeID
	// Majority is false once edits are refused because the majority, or the leader
	// that it has, is out of reach.
	Majority bool
	// Unreachable are the voters' sites that cannot be reached; empty while the
	// leader is heard, because nobody else is asked then.
	Unreachable []string
}

// Status looks at the node as it is now.
func (n *Node) Status() Status {
	voters, learners := n.committedServers()
	s := Status{Role: "none", Term: n.raft.CurrentTerm(), Index: n.raft.LastIndex(), Applied: n.appliedIndex(),
		LastContact: n.lastContact(), Voters: voters, Learners: learners, Majority: n.cutOff() == ""}
	self := n.cfg.Identity.ID
	for _, id := range voters {
		if id == self {
			s.Role = "voter"
		}
	}
	for _, id := range learners {
		if id == self {
			s.Role = "learner"
		}
	}
	if _, id := n.raft.LeaderWithID(); id != "" {
		s.Leader, _ = identity.ParseNodeID(string(id))
		m, _ := n.state.View().Node(s.Leader)
		s.LeaderSite = m.Site
		s.IsLeader = s.Leader == self
	}
	if s.IsLeader || s.Leader.IsZero() {
		s.Unreachable = n.reach.unreachable()
	}
	return s
}

// appliedIndex is how far this node's state is. raft counts its own entries
// (elections, configurations) too, and the state knows of commands alone; but
// after a start without a leader raft does not know yet what the state has.
func (n *Node) appliedIndex() uint64 {
	return max(n.raft.AppliedIndex(), n.state.View().Index())
}

// Staleness gives the index of the state that this node reads from, and how long
// ago the leader was heard: about so old the state may be. -1: it was never heard.
func (n *Node) Staleness() (index uint64, behind time.Duration) {
	return n.state.View().Index(), n.lastContact()
}

// committedServers gives the last of raft's configurations that this node has
// seen committed; until it has seen one, the latest that it has.
func (n *Node) committedServers() (voters, learners []identity.NodeID) {
	commit := n.raft.CommitIndex() // before the configuration: it may only be older
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return nil, nil
	}
	// After it: raft stores a configuration before it takes it. Its own word for the
	// index is always 0, see votes.
	index := n.logs.config.Load()
	n.mu.Lock()
	defer n.mu.Unlock()
	if index <= commit || len(n.committed) == 0 {
		n.committed = f.Configuration().Servers
	}
	return split(n.committed)
}

// lastContact is the time since a leader was heard: 0 at the leader, -1 never.
func (n *Node) lastContact() time.Duration {
	if n.raft.State() == raft.Leader {
		return 0
	}
	t := n.raft.LastContact()
	if t.IsZero() {
		return -1
	}
	return time.Since(t)
}

// toStatus puts an error on the wire, as a status with a detail.
func toStatus(err error) error {
	var (
		d      *decided
		e      *command.Error
		u      *command.Unavailable
		other  *notLeader
		gone   *removedError
		detail protoadapt.MessageV1
		code   = codes.Internal
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &d):
		code, detail = codes.Aborted, protoadapt.MessageV1Of(&Refusal{Code: uint32(d.refusal.Code), Message: d.refusal.Message, Index: d.index, Term: d.term})
	case errors.As(err, &e):
		code, detail = codes.Aborted, protoadapt.MessageV1Of(&Refusal{Code: uint32(e.Code), Message: e.Message})
	case errors.As(err, &u):
		code, detail = codes.Unavailable, protoadapt.MessageV1Of(&Unavailable{Reason: u.Reason, Sites: u.Sites, RetryAfterMs: u.RetryAfter.Milliseconds(), Indeterminate: u.Indeterminate})
	case errors.As(err, &gone):
		code, detail = codes.PermissionDenied, protoadapt.MessageV1Of(&Removed{Site: gone.Site, UnixNs: gone.At.UnixNano(), By: gone.By})
	case errors.As(err, &other):
		id, _ := identity.ParseNodeID(other.leader)
		code, detail = codes.FailedPrecondition, protoadapt.MessageV1Of(&NotLeader{LeaderId: id[:]})
	}
	st := status.New(code, err.Error())
	if detail != nil {
		if with, derr := st.WithDetails(detail); derr == nil {
			st = with
		}
	}
	return st.Err()
}

// fromStatus reads what toStatus wrote. What has no detail came from the
// transport: whether the call got through is not known then.
func fromStatus(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *Refusal:
			e := &command.Error{Code: command.Code(d.GetCode()), Message: d.GetMessage()}
			if d.GetIndex() > 0 {
				return &decided{refusal: e, index: d.GetIndex(), term: d.GetTerm()}
			}
			return e
		case *Unavailable:
			return &command.Unavailable{Reason: d.GetReason(), Sites: d.GetSites(), RetryAfter: time.Duration(d.GetRetryAfterMs()) * time.Millisecond, Indeterminate: d.GetIndeterminate()}
		case *NotLeader:
			return &notLeader{}
		case *Removed:
			return &removedError{Removal{Site: d.GetSite(), At: time.Unix(0, d.GetUnixNs()).UTC(), By: d.GetBy()}}
		}
	}
	return &command.Unavailable{Reason: st.Message(), Indeterminate: true}
}

// metrics are the node's own numbers.
type metrics struct {
	edits *prometheus.CounterVec
	took  prometheus.Histogram
	reads *prometheus.CounterVec
	// barriers is for how much strict reads share.
	barriers prometheus.Counter
}

var (
	descApplied = prometheus.NewDesc("portolan_consensus_applied_index", "Raft index of the state that this node reads from.", nil, nil)
	descTerm    = prometheus.NewDesc("portolan_consensus_term", "Raft term of this node.", nil, nil)
	descLeads   = prometheus.NewDesc("portolan_consensus_leader", "1 if this node leads.", nil, nil)
	descContact = prometheus.NewDesc("portolan_consensus_leader_contact_seconds", "Time since the leader was heard; 0 at the leader, -1: never.", nil, nil)
	descVoters  = prometheus.NewDesc("portolan_consensus_voters", "Voters in raft's configuration.", nil, nil)
	descLag     = prometheus.NewDesc("portolan_consensus_lag_entries", "Entries of this node's log that its state has not got yet.", nil, nil)
	descTrip    = prometheus.NewDesc("portolan_consensus_round_trip_seconds", "Usual round trip from this node to another over the control port: the median of the last pings.", []string{"to_site", "to_node"}, nil)
	descReach   = prometheus.NewDesc("portolan_consensus_majority", "0 once edits are refused because the majority, or its leader, is out of reach.", nil, nil)
)

func (m *metrics) init() {
	m.edits = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "portolan_consensus_edits_total", Help: "Edits proposed at this node, by how they ended."}, []string{"result"})
	m.took = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "portolan_consensus_edit_seconds", Help: "Time until the leader had decided an edit that was proposed at this node.",
		Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .4, .8, 1.6, 3.2, 10}})
	m.reads = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "portolan_consensus_strict_reads_total", Help: "Strict reads at this node, by how they ended."}, []string{"result"})
	m.barriers = prometheus.NewCounter(prometheus.CounterOpts{Name: "portolan_consensus_barriers_total", Help: "Barriers that this node made as leader for strict reads: reads that wait at the same time share one."})
}

func (m *metrics) proposed(took time.Duration, err error) {
	var e *command.Error
	var u *command.Unavailable
	result := "made"
	switch {
	case errors.As(err, &e):
		result = "refused"
	case errors.As(err, &u) && u.Indeterminate:
		result = "unknown"
	case err != nil:
		result = "unavailable"
	}
	m.edits.WithLabelValues(result).Inc()
	m.took.Observe(took.Seconds())
}

// Describe implements prometheus.Collector.
func (n *Node) Describe(ch chan<- *prometheus.Desc) {
	n.stats.edits.Describe(ch)
	n.stats.took.Describe(ch)
	n.stats.reads.Describe(ch)
	n.stats.barriers.Describe(ch)
	for _, d := range []*prometheus.Desc{descApplied, descTerm, descLeads, descContact, descVoters, descReach, descLag, descTrip} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (n *Node) Collect(ch chan<- prometheus.Metric) {
	n.stats.edits.Collect(ch)
	n.stats.took.Collect(ch)
	n.stats.reads.Collect(ch)
	n.stats.barriers.Collect(ch)
	s := n.Status()
	contact := s.LastContact.Seconds()
	if s.LastContact < 0 {
		contact = -1
	}
	for d, v := range map[*prometheus.Desc]float64{descApplied: float64(s.Applied), descTerm: float64(s.Term), descLeads: flag(s.IsLeader),
		descContact: contact, descVoters: float64(len(s.Voters)), descReach: flag(s.Majority), descLag: float64(s.Index - min(s.Index, s.Applied))} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	view := n.state.View()
	for id, d := range n.trips.usual() {
		if m, ok := view.Node(id); ok {
			ch <- prometheus.MustNewConstMetric(descTrip, prometheus.GaugeValue, d.Seconds(), m.Site, id.String())
		}
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

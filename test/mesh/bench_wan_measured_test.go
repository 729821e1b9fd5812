package mesh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/wan"
)

// measured is what the network counted in a round, and how much of the machine's
// processors others used than the nodes and what drives and measures them, 0..1.
type measured struct {
	wan.Stats
	others float64
	// near: all is on loopback. There is no emulated network whose accuracy would end
	// with the machine's, and nodes are meant to use all that there is.
	near bool
}

// othersMost is how much of the machine others may use, 0..1, in a round on loopback.
const othersMost = 1 - wan.MaxMachineCPU

// void is why a round does not count; nil: it does. own: it is the nodes' own work that
// kept the machine too busy, and nothing else is wrong.
func (m measured) void() (own bool, why error) {
	if m.near {
		if m.others > othersMost {
			why = fmt.Errorf("others used %.0f %% of the machine, more than %.0f %%", 100*m.others, 100*othersMost)
		}
		return false, why
	}
	quiet := m.Stats
	quiet.MachineCPU = 0
	return m.MachineCPU-m.others > wan.MaxMachineCPU && quiet.Trustworthy() == nil, m.Trustworthy()
}

// use is how the machine stood at the last reset of the network's counters.
type use struct {
	machine figures.Machine
	nodes   float64 // processor time of those that run, in seconds
}

// stats gives what happened since the last reset, and resets if asked to.
func (m *farMesh) stats(t *testing.T, reset bool) measured {
	t.Helper()
	st := m.lab.Stats(reset)
	nodes := 0.0
	for _, pid := range m.pids() {
		s, err := processCPU(pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a node that has ended is known of as such
			t.Fatal(err)
		}
		nodes += s
	}
	since, err := m.since.machine.Use(nodes - m.since.nodes + st.CPUSeconds) // the router runs, too
	if err != nil {
		t.Fatal(err)
	}
	if reset {
		m.since.nodes = nodes
		if m.since.machine, err = figures.Now(); err != nil {
			t.Fatal(err)
		}
	}
	return measured{Stats: st, others: since.Others}
}

// processCPU is the processor time that a process has used, in seconds.
func processCPU(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // after the command's name: state and so on
	f := strings.Fields(rest)
	const user, system, hz = 11, 12, 100
	if len(f) <= system {
		return 0, fmt.Errorf("/proc/%d/stat has %q", pid, b)
	}
	sum := 0.0
	for _, k := range []int{user, system} {
		n, err := strconv.ParseFloat(f[k], 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += n / hz
	}
	return sum, nil
}

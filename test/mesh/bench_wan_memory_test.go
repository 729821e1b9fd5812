package mesh

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
)

// memoryMost is what a node may have in memory at full load, in MiB.
const memoryMost = 300

// memoryWatch looks at how much memory nodes have of their own (RssAnon), as the
// other benchmarks do, all through a round. The kernel's own high-water mark (VmHWM)
// counts what of the catalogue's files is mapped as well, which lies in memory as
// far as the machine has it to spare: that is beside it in the note.
type memoryWatch struct {
	pids []int
	stop context.CancelFunc
	done sync.WaitGroup
	most float64 // MiB
	err  error
}

const memoryEvery = 100 * time.Millisecond

func watchMemory(t *testing.T, pids []int) *memoryWatch {
	ctx, cancel := context.WithCancel(t.Context())
	w := &memoryWatch{pids: pids, stop: cancel}
	w.done.Go(func() {
		tick := time.NewTicker(memoryEvery)
		defer tick.Stop()
		for {
			own, err := mostOf(w.pids, "RssAnon:")
			if err != nil {
				w.err = err
				return
			}
			w.most = max(w.most, own)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); w.done.Wait() })
	return w
}

// add ends the watch and notes the figure.
func (w *memoryWatch) add(b *bench, t *testing.T, st measured, name string) {
	t.Helper()
	w.stop()
	w.done.Wait()
	if w.err != nil {
		t.Fatal(w.err)
	}
	all, err := mostOf(w.pids, "VmHWM:")
	if err != nil {
		t.Fatal(err)
	}
	b.add(t, st, name+": most memory of a node of its own", w.most, "MiB", figures.AtMost(memoryMost), fmt.Sprintf("with the catalogue's files, which it maps, at most %.0f", all))
}

// mostOf is the largest value of a field of the processes' /proc/PID/status, in MiB.
func mostOf(pids []int, field string) (float64, error) {
	most := 0.0
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, ok := strings.Cut(string(b), field)
		if !ok {
			return 0, fmt.Errorf("the status of process %d has no %s", pid, field)
		}
		kib, err := strconv.ParseFloat(strings.Fields(rest + " -")[0], 64)
		if err != nil {
			return 0, fmt.Errorf("the status of process %d: %s %w", pid, field, err)
		}
		most = max(most, kib/1024)
	}
	return most, nil
}

// pids are the nodes' processes.
func (m *farMesh) pids() []int {
	var out []int
	for _, s := range m.sites {
		out = append(out, s.process.Cmd.Process.Pid)
	}
	return out
}

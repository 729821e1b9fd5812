package figures

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine tells how much of the cores was used by others while a group ran: a
// busy machine moves throughput and times, in either direction, and the reader
// of a result must know. Processor time per request stays what it is.
type Machine struct {
	begin     time.Time
	all, mine float64 // processor seconds
}

// Now looks at the machine.
func Now() (Machine, error) {
	m := Machine{begin: time.Now()}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, err
	}
	if m.all, err = parseBusy(string(b)); err != nil {
		return m, err
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} { // children: those that have ended
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			return m, err
		}
		m.mine += float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	return m, nil
}

// Use is what was used of the cores meanwhile, as shares of all, 0 to 1.
type Use struct {
	Busy   float64 // by anybody
	Others float64 // by others than the caller and what it started
}

// Others is the share of the cores, 0 to 1, that others used since m. Processes
// that the caller started count as others unless they have ended by both
// occasions.
func (m Machine) Others() (float64, error) {
	use, err := m.Use(0)
	return use.Others, err
}

// Use is what was used since m. ours is the processor time, in seconds, that processes
// used since which the caller started and which run on; those that have ended are known.
func (m Machine) Use(ours float64) (Use, error) {
	now, err := Now()
	if err != nil {
		return Use{}, err
	}
	return m.until(now, ours, runtime.NumCPU()), nil
}

func (m Machine) until(now Machine, ours float64, cores int) Use {
	most := now.begin.Sub(m.begin).Seconds() * float64(cores)
	share := func(used float64) float64 { return min(max(used/most, 0), 1) }
	all := now.all - m.all
	return Use{Busy: share(all), Others: share(all - (now.mine - m.mine) - ours)}
}

// ticks per second of the times in /proc: USER_HZ, which Linux fixed at 100.
const ticks = 100

// parseBusy sums what the first line of /proc/stat has, without idle and iowait,
// and without the guests' time, which is part of the user's.
func parseBusy(stat string) (float64, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("%q is not the first line of /proc/stat", line)
	}
	var sum uint64
	var errs error
	for i, s := range f[1:9] { // user nice system idle iowait irq softirq steal
		v, err := strconv.ParseUint(s, 10, 64)
		errs = errors.Join(errs, err)
		if i != 3 && i != 4 {
			sum += v
		}
	}
	return float64(sum) / ticks, errs
}

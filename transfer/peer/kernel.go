package peer

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// kernelWant is the TCP buffer that a connection should be able to grow to:
	// twice 1 Gbit/s at 250 ms.
	kernelWant = 64 << 20
	// kernelUsual is the window where settings can't be read: half of the 6 MiB that
	// Linux has. kernelLeast bounds what strange settings lead to.
	kernelUsual, kernelLeast = 3 << 20, 64 << 10
	// kernelDelay is the round trip that advice speaks of.
	kernelDelay = 0.1 // seconds
)

// KernelAdvice says what this machine's TCP settings cost transfers over long
// links, and what to set instead: a sentence each, none if all is well or the
// settings can't be read. A connection sends no faster than its buffers divided
// by the round trip, whatever the link gives.
func KernelAdvice() []string { return kernelAdvice("/proc/sys/net/ipv4") }

func kernelAdvice(dir string) []string {
	var out []string
	for _, name := range []string{"tcp_rmem", "tcp_wmem"} {
		most, ok := kernelLimit(filepath.Join(dir, name))
		if !ok || most >= kernelWant {
			continue
		}
		verb, usual := "receives", "131072"
		if name == "tcp_wmem" {
			verb, usual = "sends", "65536"
		}
		// Half of a receive buffer is the kernel's own.
		rate := float64(most) / kernelDelay * 8 / 1e6
		if name == "tcp_rmem" {
			rate /= 2
		}
		out = append(out, fmt.Sprintf("one connection %s at most about %.0f Mbit/s over a link of %.0f ms, because net.ipv4.%s ends at %d bytes: set net.ipv4.%s=\"4096 %s %d\"",
			verb, rate, kernelDelay*1000, name, most, name, usual, kernelWant))
	}
	raw, err := os.ReadFile(filepath.Join(dir, "tcp_congestion_control"))
	if name := strings.TrimSpace(string(raw)); err == nil && name != "bbr" && name != "" {
		out = append(out, fmt.Sprintf("congestion control is %s, which is slow over long links that lose packets: load the module tcp_bbr and set net.ipv4.tcp_congestion_control=bbr", name))
	}
	return out
}

// kernelWindow is how many bytes one connection can have on its way, by this
// machine's settings; the other side's are thought to be the same.
func kernelWindow(dir string) int64 {
	window := int64(kernelUsual)
	receive, ok := kernelLimit(filepath.Join(dir, "tcp_rmem"))
	if ok {
		window = receive / 2 // half of a receive buffer is the kernel's own
	}
	if send, ok := kernelLimit(filepath.Join(dir, "tcp_wmem")); ok {
		window = min(window, send)
	}
	return max(window, kernelLeast)
}

// kernelLimit reads the last of the three numbers of tcp_rmem or tcp_wmem.
func kernelLimit(file string) (int64, bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(raw))
	if len(fields) != 3 {
		return 0, false
	}
	n, err := strconv.ParseInt(fields[2], 10, 64)
	return n, err == nil
}

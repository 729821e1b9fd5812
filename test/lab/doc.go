// Package lab runs the control plane of a whole mesh in one process: real nodes
// with real logs and real connections, over links whose delay and faults are
// the caller's to choose.
//
//	m := lab.New(dir)
//	defer m.Close()
//	err := m.Grow(ctx, consensus.LAN, "ams", "fra", "sgp")
//	m.Net.Delay(40 * time.Millisecond)     // 80 ms round trips from now on
//	m.Net.Cut("ams", "fra")                // from ams to fra, not back
//	m.Site("sgp").Kill()
//
// What is on its way over a link that is cut waits until it is whole again, as
// behind a router that drops packets. All methods may be called concurrently.
package lab

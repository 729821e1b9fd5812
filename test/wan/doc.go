// Package wan emulates a WAN between sites on one machine, for tests and
// benchmarks: delay, jitter, bandwidth, loss and cuts, each per direction of a
// link, and caps on what a site sends and receives in all.
//
//	lab := wan.Start(t, wan.Topo{
//		Sites:   []wan.Site{{Name: "fra", Egress: 20 * wan.Mbit}, {Name: "sgp"}},
//		Default: wan.Params{RTT: 80 * wan.Millisecond},
//	})
//	cmd := lab.Command(ctx, "fra", "portolan", "serve", …)   // *exec.Cmd, its pid is portolan's
//	client := http.Client{Transport: &http.Transport{DialContext: lab.Dialer("sgp")}}
//	lab.Link("fra", "sgp", wan.Change{Loss: new(0.01)})
//	lab.Isolate("sgp")
//	lab.Heal()
//	st := lab.Stats(true)                                    // bytes, packets, drops by reason
//	if err := st.Trustworthy(); err != nil { … }             // the run is void
//
// Each site is a network namespace with the address 10.77.N.1, N being its place
// in the Topo from 1, and a TUN device; one process, the command wanlab, routes
// IPv4 between the devices in user space. Nothing is connected to the root
// namespace or to the world. It needs Linux, root, /dev/net/tun and the ip
// command, but no netem; where these are missing, tests are skipped.
//
// # What it promises
//
// Packets of a link keep their order, are never duplicated or changed, and are
// counted: each that a site sends to another is in exactly one of Packets, DropQueue,
// DropLoss, DropDown, EgressDrops, IngressDrops, HostDrops, or still on its way. A
// packet never arrives before its delay is over, and a transfer never takes less
// than its bytes at the rates and caps on its way, however busy the machine is. A link that is cut loses what is on its
// wire. Changes other than cuts hold for packets to come; those on the wire arrive
// as they would have.
//
// Rates and caps count bytes of IP packets: TCP over MTU 1500 gets at most 96.5 % of
// them as goodput. Delays are half of RTT per direction. Durations are ns in Go
// and "80ms" in JSON, rates bits per second in Go and "200mbit" in JSON, queues
// bytes.
//
// # What it does not
//
// Delays and rates may be missed towards the slow side when the machine is busy.
// Router and nodes share its processors, so look at Stats.Trustworthy after each
// measurement. Measured on a virtual machine of 2 cores shared with other work
// (load 0.5 to 3):
//
//	ping above the configured RTT, ms         median        p90          p99
//	idle (30 runs)                            0.2 to 0.5    0.3 to 0.8   0.5 to 5
//	4 busy loops on the 2 cores               0.3           0.4          3
//	200 Mbit/s of TCP on another link         0.5 to 1.6    0.7 to 6     1 to 14
//	1 Gbit/s of TCP on another link           0.7 to 1.8    1.4 to 9     4 to 25
//
//	2 TCP flows, RTT 10 ms     goodput, Mbit/s     router, % of a core    late, %
//	MTU 1500: 100 Mbit/s       97                  22 to 25               0.4 to 4
//	          500 Mbit/s       481 to 484          35 to 44               1 to 6
//	          1 Gbit/s         956 to 963          57 to 61               6 to 9
//	          unlimited        2080 to 2220        93 to 95               saturated
//	MTU 9000: 1 Gbit/s         963 to 994          30 to 36               1 to 21
//	          unlimited        3240 to 4340        57 to 59               7 to 41
//
// So it carries 2 Gbit/s in sum at MTU 1500 and 3 to 4 at 9000; delays are within
// 1 ms in the median up to 1 Gbit/s; for tail latencies stay at 500 Mbit/s or
// less, and repeat. `make bench-wan-figures` measures this machine.
//
// The sites inherit the machine's TCP settings: a path with a large rate x RTT
// needs larger windows than the usual 4 MB (Lab.Sysctl, net.ipv4.tcp_wmem and
// tcp_rmem). All wires and queues hold at most 512 MiB together; packets beyond that
// are HostDrops. At most 254 sites.
//
// # Concurrency and ownership
//
// A Control may be used from any goroutine; a Lab from that of its test, as
// testing.TB. The router runs under SCHED_RR in a process of its own, so that
// load does not disturb it, and ends when the process that started it does. A lab
// owns its name: namespaces are called wan-LAB-SITE, its lock and socket are
// /run/wanlab/LAB.*. The lock is the kernel's, so what a killed router left is known as
// such, and the next Start removes it. Processes in a site belong to whoever
// started them; those still there when the lab goes down are reported, not killed.
//
// By hand, as root:
//
//	go build -o /usr/local/bin/wanlab ./test/wan/wanlab
//	wanlab up -f test/wan/wanlab/example.json &    # prints "up"; until SIGINT or SIGTERM
//	wanlab exec fra -- ping 10.77.3.1
//	wanlab link fra sgp --rtt 80ms --loss 0.01
//	wanlab stats
package wan

// Package linear holds that edits and strict reads of the control plane are
// linearizable: meshes of three and five voters, in one process (test/lab), take
// edits, conditional edits and strict reads at all nodes while leaders are
// killed and links are cut (in both directions, in one, around a bridge) or slow;
// porcupine then looks for one order that explains every answer. Three processes of
// the real binary take the same calls by their API while one of them, mostly the
// one that leads, stands still (SIGSTOP) and goes on; and three more take pushes,
// deletions and strict reads of strong tags while the leader is killed as well.
//
//	go test ./test/linear                              # what make test runs: 30 s a mesh
//	make linear                                        # 3 minutes a mesh
//	go test ./test/linear -args -for 10m               # longer
//	go test ./test/linear -args -seed 42 -v            # the faults and the calls of a run
//
// A seed gives the same faults and the same calls in each client's order; how
// they fall together in time is the machine's. The checker's own tests show that
// it finds a stale read, planted in a history and made by a real node.
package linear

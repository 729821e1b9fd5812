// Package telemetry is how a node tells what it does: log lines and metrics.
//
// Logs go through log/slog alone. [NewLogger] makes the process's logger, in
// plain lines for people or in JSON for machines; packages get it injected and
// put nothing into a message that changes: what changes is an attribute (node,
// site, repository, digest, index, err). [HCLog] and [StdLog] bring libraries
// that log otherwise to the same place.
//
// Metrics are Prometheus collectors, registered by the node on the one registry
// of [NewRegistry]; there is no global registry, so two nodes can live in one
// test. Names are portolan_<package>_<noun>_<unit>: counters end in _total,
// sizes in _bytes, times in _seconds, plain numbers in _count. A label has a
// bounded set of values: sites and protocols yes, digests and addresses no.
//
// Everything here may be used from any goroutine and starts none.
package telemetry

// Package registryapi puts the node's HTTP surface together: one listener, one
// table of who answers which path, the limits that hold for all of them, the
// request log, and a bounded end.
//
//	/v2/, /v2                 the OCI distribution API (registryapi/v2)
//	/service/token            the Docker token service (registryapi/access)
//	/api/v2.0/, /api/version  management in Harbor's words (registryapi/harbor)
//	/api/mesh/v1/             what Harbor has no word for (registryapi/mesh)
//	/healthz, /readyz         without login, without a leader
//	/metrics                  Prometheus
//
// It decides nothing about rights and holds no state: the handlers come from
// outside, and node joins them. See DESIGN.md for the invariants.
//
// A [Server] is made by [New], serves in [Server.Run] until its context ends,
// and then gives what is under way [ShutdownTimeout] to finish.
package registryapi

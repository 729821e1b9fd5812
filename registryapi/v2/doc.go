// Package v2 answers /v2/: the OCI distribution specification 1.1 with sha256
// and sha512, for content that this site holds and for content that arrives from
// others while it is served.
//
// It is a thin layer of handlers over distribution's vocabulary (route names,
// grammar, error codes). A handler returns an error and never writes half an
// answer: one function turns errors into the specification's JSON.
//
// Order of decisions at every request: form of the name, its canonical form,
// who is asking, what they may do, and only then what there is. See DESIGN.md.
//
// The package owns no goroutine and keeps no state: an upload's state is in the
// store, and its URL says which.
package v2

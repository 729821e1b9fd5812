// Command portolan is a container registry that lives in many datacenters, and
// the tool to run it: one binary.
//
// serve, join and dev run nodes, and recover repairs one that does not run. Every
// other verb speaks to a node's API: to the one that --server or PORTOLAN_SERVER
// names, or the one of the last login, with PORTOLAN_USERNAME and
// PORTOLAN_PASSWORD or that login.
//
// What a verb was asked for goes to stdout, all else to stderr; with --json
// stdout is exactly one document. An error is one sentence that says what to
// do, and the exit code is 1.
package main

// Package client speaks to a node's management APIs: typed calls, every failure
// an error of one sentence that a person can act upon.
//
// A Client holds no state but the address and the login; it is safe for
// concurrent use. It does not retry: whoever waits for something repeats.
package client

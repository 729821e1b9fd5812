// Package rowpb is the encoding of the catalogue's values and delta pages. Only
// package catalog uses it; the messages are documented in row.proto.
package rowpb

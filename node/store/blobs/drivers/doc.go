// Package drivers makes the buckets that a store can keep its blobs in: S3, GCS
// and Azure, by the storage drivers of the distribution registry. It is the one
// place where their SDKs come in, and package blobs, which uses what [New] gives,
// knows none of them.
//
// Parameters are the drivers' own, as text, and are documented with them
// (https://distribution.github.io/distribution/storage-drivers/). What a driver
// takes from elsewhere when a parameter is missing (credentials from the
// environment, from a file of the SDK or from the machine) works as there.
//
// They cost a binary 33 MB (42 to 75, stripped) and an idle node 4 MiB of memory of
// its own. What importing them does besides: the drivers register a timer in
// Prometheus's default registry, which no node serves; their tracing goes to
// OpenTelemetry's global provider, which nobody sets and no variable of the
// environment starts.
package drivers

// Package config is a node's settings and the two small files that say what a
// data directory is.
//
// Every option stands once, in [Options]: flags, environment variables, keys of
// the configuration file, help text and the README's table are made from it.
// [Load] takes each option from the first of these that names it:
//
//  1. the flag                        --gossip-port 7001
//  2. the environment                 PORTOLAN_GOSSIP_PORT=7001
//  3. the configuration file          gossip-port: 7001
//     (--config FILE, else portolan.yaml in the data directory)
//  4. what an earlier start saved     settings.yaml in the data directory
//  5. the default
//
// The parameters of a storage driver are keys below one option: each is taken from
// the first source that names it, so that secrets can come from the environment
// and the rest from the file. They are never saved.
//
// A key that the file should not have is an error, since a typing mistake in it
// would go unnoticed for months; an unknown PORTOLAN_ variable is a warning,
// since an environment has many owners.
//
// Files in the data directory:
//
//	settings.yaml  what `serve --site` and `join` were told ([Config.Save])
//	format         JSON: version of the directory, mesh, node ([Format])
//	lock           held while a node runs on the directory ([Lock])
//
// Nothing here is kept between calls; all functions may be called from any
// goroutine.
package config

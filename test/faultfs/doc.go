// Package faultfs is a FUSE file system for tests, which forgets at a power cut
// what no fsync has made durable, and fails when it is told to. Killing a
// process shows only that it can be killed: the page cache keeps what the disk
// never saw. Here the page cache is the kernel's own, so that memory maps work
// as they do on a disk, and what lies below it is a journal in memory.
//
// # What survives
//
// All operations that change something are journalled in their order. A crash
// after the n-th ([FS.Crash]) leaves an [Image]:
//
//   - A file's bytes and size are durable by fsync or fdatasync of that file
//     (msync reaches FUSE as both a write and an fsync). What came later survives
//     by the seed: not at all, all of it, up to some operation, whose write may
//     be torn at any byte, or page by page in any order.
//   - Names (creations, links, renames, unlinks, new directories) are durable by
//     fsync of their directory, and by nothing else: not by the file's fsync. What
//     came later survives by the seed: none, all, the first ones, or the first
//     ones of each directory. The order within a directory holds, and a rename is
//     atomic, as on every journalling file system.
//   - Bytes and names know nothing of each other: a name may survive without the
//     bytes that were written before it, as with delayed allocation.
//
// Seed 0 leaves only what was synced, seed 1 all that reached the file system
// (dirty pages of maps that nobody synced have not), others choose by chance, the
// same every time.
//
// # How it is used
//
// A program must not map files of a file system that it serves itself: a page
// fault stops a thread that the server may need. So the process under test is a
// child, and the server is in the test. [FS.Mark], or a line written to [MarkFile]
// in the root, puts a word into the journal, such as what was just acknowledged:
// from one run of a script all its crashes can be derived and looked at.
//
// It needs Linux, root and /dev/fuse: see [Require]. Symbolic links, extended
// attributes, holes that are punched and special files are not there.
package faultfs

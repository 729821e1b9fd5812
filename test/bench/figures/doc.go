// Package figures is what benchmarks of meshes have in common: rows with a
// figure beside its target, as a table and as JSON lines, and how busy the
// machine was with other things.
package figures

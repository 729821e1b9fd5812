// Package upgrade runs a mesh of nodes with two command levels: this tree's
// binary, and the same built with the tag portolan_level2, in which the
// revocation of tokens stands for a command that came with the next level.
package upgrade

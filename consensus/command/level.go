//go:build !portolan_level2

package command

// Level is the highest command level that this binary understands. It goes up by
// one when a command or a field is added, and never down. No version of level 1
// has been released yet: until then it takes in what is added.
const Level uint32 = 1

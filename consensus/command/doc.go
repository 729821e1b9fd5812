// Package command is the language of the control plane: what can be said to the
// replicated state, and what it answers.
//
// A command is an [Envelope] around one message. [New] makes it, with a request
// id that makes a retry harmless: the state applies an id once and answers a
// second application with the first one's result.
//
// An answer is a [Result], an [Error] (the state understood the command and
// refuses it: nothing was changed, a retry gives the same) or an [Unavailable]
// (no majority was there to decide). Both errors cross the wire between nodes
// unchanged; match them with errors.As, never by their text.
//
// Numbers of types and fields are for ever. A message may gain fields only
// together with a higher level in [MinLevel], because a node that does not know
// a field would drop it silently and diverge.
//
// The package is a leaf: values only, no state, safe for concurrent use.
package command

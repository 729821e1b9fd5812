// Package gossip tells a node which others are alive, how far away they are,
// and what they have to say at this moment.
//
// Everything here is a hint. Who belongs to the mesh stands in the replicated
// node list, what a project holds in the catalogue; code that would give a
// wrong answer when a hint is late, lost or invented must not use this package.
//
// It is hashicorp/memberlist with keys from the first packet and the mesh's id
// as label, so that two meshes never mix, plus a loop that looks for everybody
// again after a long cut, which memberlist does not. See DESIGN.md.
//
// [New] opens the port; [Mesh.Run] does the work until its context ends, leaves
// with a word and closes the port. All other methods may be called from any
// goroutine before, during and after Run.
package gossip

// Package wire is the control port: one TCP port on which nodes of a mesh
// speak raft and gRPC to one another under TLS 1.3.
//
//	          TCP accept
//	              |
//	       TLS 1.3 handshake          own goroutine, 10 s, bounded in number
//	              |
//	    client certificate -> NodeID
//	      |                  |
//	"portolan-raft/2"       "h2"      ALPN
//	members only           anyone     (a joiner is no member yet: gRPC methods
//	      |                  |         decide by PeerNodeID)
//	   Raft()             GRPC()      virtual listeners
//
// What it promises: every connection that leaves Raft or GRPC belongs to the
// node that PeerNodeID or [Conn.NodeID] names; every connection that is dialled
// ends at the node that was asked for; a slow, silent or foreign peer costs a
// bounded amount of memory for a bounded time and delays nobody else. Crowds of
// them turn one another away, and no member (package door).
//
// What it does not: it decides no rights beyond membership on the raft side,
// and it checks no dates or names in certificates. The key is the node.
//
// All functions and methods may be called from any goroutine. A [Listener]
// accepts while Run runs; Close (or the end of Run) closes every connection
// that it ever handed out.
package wire

// Package siblings brings the rest of an image while a client pulls its first layer.
//
// A client that takes one layer after the other waits for each over the WAN. So the
// site remembers which manifests it gave to clients lately; when a blob is asked for
// that is not here and that one of those names, the others that the image lacks are
// fetched as cached copies, in the order of the manifest. A client that then asks for
// one takes its transfer over.
//
// It promises to cost nobody anything who waits: see [swarm.Want.Ahead]. It fetches only
// what a live manifest of the same repository names, and only for a project that may
// rest at this site; who may read the repository was decided when the client's request
// was. What it does is bounded per subject and in all, and ends when no client of the
// image has asked for anything for a while. Nothing depends on it.
//
// [Siblings] is safe for concurrent use; its goroutines are joined by [Siblings.Run].
//
//	s, err := siblings.New(siblings.Config{Catalog: cat, Fetch: swarm.Fetch, …})
//	go s.Run(ctx)
//	s.Served(pid, "app", manifest)
//	defer s.Asked(siblings.Ask{Subject: "user:dev", PID: pid, Repo: "app", Digest: layer, Missing: true})()
package siblings

package catalog_test

import (
	"context"
	"fmt"
	"log"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// Two sites: a push at one, and the exchange that brings it to the other.
func Example() {
	ctx := context.Background()
	fra, err := catalog.Open("", catalog.Options{InMemory: true})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = fra.Close() }()
	sgp, err := catalog.Open("", catalog.Options{InMemory: true})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = sgp.Close() }()

	pid, body := identity.NewProjectID(), []byte(`{"schemaVersion":2}`)
	_, err = fra.PutManifest(ctx, catalog.Put{
		PID: pid, Repo: "app", Digest: digest.FromBytes(body), Size: int64(len(body)), Bytes: body,
		MediaType: "application/vnd.oci.image.manifest.v1+json", Tags: []string{"1.0"}, Home: "fra",
	})
	if err != nil {
		log.Fatal(err)
	}

	since, err := sgp.Vector(pid) // what the receiver has seen
	if err != nil {
		log.Fatal(err)
	}
	noted, err := fra.Delta(ctx, pid, since, 1<<20, func(p catalog.Page) error {
		_, err := sgp.ApplyPage(ctx, pid, p)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := sgp.Adopt(ctx, pid, since, noted); err != nil { // only after the last page
		log.Fatal(err)
	}
	tag, err := sgp.Tag(pid, "app", "1.0")
	fmt.Println(tag.Digest == digest.FromBytes(body), err)
	// Output: true <nil>
}

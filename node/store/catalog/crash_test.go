package catalog

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// crashDirEnv makes the test binary a child that writes until it is killed.
const crashDirEnv = "PORTOLAN_TEST_CRASH_DIR"

var crashPID = identity.ProjectID{1, 2, 3}

// crashChild writes from several goroutines and prints each acknowledged write.
func crashChild(dir string) {
	c, err := Open(dir, Options{Logger: quiet})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	out := make(chan string)
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%s-%d-%d", os.Getenv(crashDirEnv+"_RUN"), w, i)
				p := put(crashPID, "app", name, name)
				dot, err := c.PutManifest(context.Background(), p)
				if err == nil {
					d := digest.FromString(name)
					err = c.PutBlob(context.Background(), BlobRow{Digest: d, Size: 3, Class: Home}, nil, nil)
				}
				if err != nil {
					out <- "error " + err.Error()
					return
				}
				out <- fmt.Sprintf("ack %s %s %s", name, p.Digest, dot)
			}
		}()
	}
	for line := range out {
		fmt.Println(line) // unbuffered: it is in the pipe before the kill
	}
}

// TestCrash kills a writing process and finds all that it had acknowledged.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]string{} // tag -> digest
	dots := map[string]bool{}
	for run := range 3 {
		env := []string{crashDirEnv + "=" + dir, fmt.Sprintf("%s_RUN=%d", crashDirEnv, run)}
		runUntilKilled(t, env, func(n int, line string) (kill bool) {
			f := strings.Fields(line)
			if len(f) != 4 || f[0] != "ack" {
				t.Errorf("child said %q", line)
				return true // it may still run
			}
			acked[f[1]] = f[2]
			if dots[f[3]] {
				t.Errorf("dot %s was given twice", f[3])
			}
			dots[f[3]] = true
			return n == 61+40*run // what is in the pipe is read on
		})

		c := openAt(t, dir, Options{})
		for tag, d := range acked {
			if info, err := c.Tag(crashPID, "app", tag); err != nil || info.Digest.String() != d {
				t.Errorf("acknowledged tag %s: %+v, %v", tag, info, err)
			}
			if b, ok, err := c.Content(digest.Digest(d)); err != nil || !ok || digest.FromBytes(b).String() != d {
				t.Errorf("acknowledged manifest %s: %v, %v", d, ok, err)
			}
			if _, err := c.Blob(digest.FromString(tag)); err != nil {
				t.Errorf("acknowledged blob of %s: %v", tag, err)
			}
		}
		stored, counted, err := c.Recount(context.Background(), crashPID)
		if err != nil || stored != counted {
			t.Errorf("check %v, recounted %v, %v", stored, counted, err)
		}
		if err := auditDerived(c, crashPID); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

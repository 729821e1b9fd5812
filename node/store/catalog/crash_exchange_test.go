package catalog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/portolan/portolan/node/identity"
)

// crashExchangeEnv makes the test binary a child in which two catalogues write
// and pull from each other until it is killed.
const crashExchangeEnv = "PORTOLAN_TEST_CRASH_EXCHANGE_DIR"

func crashExchangeChild(dir string) {
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	open := func(name string) *Catalog {
		c, err := Open(filepath.Join(dir, name), Options{Logger: quiet})
		if err != nil {
			fail(err)
		}
		return c
	}
	ctx, a, b := context.Background(), open("a"), open("b")
	run := rand.Uint64()
	for _, c := range []*Catalog{a, b} {
		go func() {
			for i := 0; ; i++ {
				p := put(crashPID, "app", fmt.Sprint(run, i), fmt.Sprint("tag", i%50), "latest")
				if _, err := c.PutManifest(ctx, p); err != nil {
					fail(err)
				}
				if i%3 == 0 {
					if err := c.DeleteTag(ctx, crashPID, "app", fmt.Sprint("tag", i%20), "ann", 1); err != nil && !errors.Is(err, ErrNotFound) {
						fail(err)
					}
				}
			}
		}()
	}
	for {
		for _, pair := range [][2]*Catalog{{a, b}, {b, a}} {
			since, err := pair[0].Vector(crashPID)
			if err != nil {
				fail(err)
			}
			v, err := pair[1].Delta(ctx, crashPID, since, 4<<10, func(p Page) error {
				_, err := pair[0].ApplyPage(ctx, crashPID, p)
				return err
			})
			if err == nil {
				err = pair[0].Adopt(ctx, crashPID, since, v)
			}
			if err != nil {
				fail(err)
			}
			fmt.Println("pulled")
		}
	}
}

// TestCrash_InAnExchange kills both sides of exchanges under way. Afterwards one
// exchange each way makes them equal: nothing that a vector covers is missing.
func TestCrash_InAnExchange(t *testing.T) {
	dir := t.TempDir()
	for run := range 4 {
		runUntilKilled(t, []string{crashExchangeEnv + "=" + dir}, func(n int, line string) (kill bool) {
			if line != "pulled" {
				t.Fatal(line)
			}
			return n >= 2+rand.IntN(4)+run
		})

		func() {
			a, err := Open(filepath.Join(dir, "a"), Options{Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = a.Close() }()
			b, err := Open(filepath.Join(dir, "b"), Options{Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = b.Close() }()
			for _, c := range []*Catalog{a, b} {
				if err := auditDerived(c, crashPID); err != nil {
					t.Error(err)
				}
			}
			mustPull(t, a, b, crashPID)
			mustPull(t, b, a, crashPID)
			same(t, crashPID, a, b)
			equalVectors(t, crashPID, a, b)
		}()
	}
}

func equalVectors(t *testing.T, pid identity.ProjectID, a, b *Catalog) {
	t.Helper()
	va, err := a.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	vb, err := b.Vector(pid)
	if err != nil || !va.Equal(vb) {
		t.Errorf("vectors %v and %v, %v", va, vb, err)
	}
}

// runUntilKilled runs this test's program as a child and kills it at the line of its
// output, the first is 1, that kill asks for; it returns when the child is gone.
func runUntilKilled(t *testing.T, env []string, kill func(n int, line string) bool) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	killed := false
	for n := 1; lines.Scan(); n++ {
		if kill(n, lines.Text()) && !killed {
			killed = true
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // "signal: killed"
}

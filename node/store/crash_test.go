package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// crashDir makes this test binary the child of TestCrash.
const crashDir = "PORTOLAN_TEST_CRASH_DIR"

// crashChild pushes and fetches blobs until it is killed. After each promise of
// the store it prints what was promised, with one write:
//
//	blob <seed> <size>      an upload or fetch was acknowledged
//	offset <id> <n> <seed>  an upload's offset was answered
//
// Contents and the algorithms of their digests follow from seed and size, so
// that the parent knows them too.
func crashChild(dir string) {
	id, err := identity.Load(dir)
	if err != nil {
		panic(err)
	}
	s, err := Open(context.Background(), Config{Dir: filepath.Join(dir, "store"), Identity: id, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	go func() { _ = s.Run(context.Background()) }()
	base := uint64(time.Now().UnixNano())
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			for n := uint64(0); ; n++ {
				if err := crashStep(s, base+w<<32+n); err != nil {
					panic(err)
				}
			}
		})
	}
	wg.Wait()
}

func crashContent(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// crashAlgorithm is the one that a content is named by at the end.
func crashAlgorithm(seed uint64) digest.Algorithm {
	algs := units.Algorithms()
	return algs[rand.New(rand.NewPCG(seed, 2)).IntN(len(algs))]
}

func crashStep(s *Store, seed uint64) error {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 1))
	size := []int{100, InlineMax + 1, 200_000, int(2*units.Unit) + 5}[r.IntN(4)]
	b := crashContent(seed, size)
	d := crashAlgorithm(seed).FromBytes(b)
	if r.IntN(3) == 0 {
		if err := s.PutFetched(ctx, identity.ProjectID{}, d, b, Placed); err != nil {
			return err
		}
		fmt.Printf("blob %d %d\n", seed, size)
		return nil
	}
	id, err := s.CreateUpload(ctx)
	if err != nil {
		return err
	}
	u, err := s.Upload(ctx, id)
	if err != nil {
		return err
	}
	if r.IntN(2) == 0 { // else it is hashed by sha256 and maybe once more
		if err := u.Expect(d.Algorithm()); err != nil {
			return err
		}
	}
	rest := b
	for range r.IntN(3) {
		n := r.IntN(len(rest) + 1)
		if _, err := u.Append(ctx, bytes.NewReader(rest[:n])); err != nil {
			return err
		}
		rest = rest[n:]
		fmt.Printf("offset %s %d %d\n", id, u.Offset(), seed)
	}
	if _, err := u.Finish(ctx, bytes.NewReader(rest), d, Link{Repo: "crash"}); err != nil {
		return err
	}
	fmt.Printf("blob %d %d\n", seed, size)
	return nil
}

// TestCrash kills a pushing process at random moments. What it had acknowledged
// is there and whole; what it had not is there whole or not at all; uploads go
// on where they were answered to be; the sweep leaves no stray file.
func TestCrash(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	newIdentity(t, dir)
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		said := crashOnce(t, self, dir, 20+rand.IntN(60))
		s := openAt(t, dir, time.Now)
		nBlobs, nOffsets := crashCheck(t, s, said)
		t.Logf("round %d: %d blobs and %d offsets hold", round, nBlobs, nOffsets)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// crashOnce kills the child after it has said so many lines, and gives them.
func crashOnce(t *testing.T, self, dir string, lines int) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	in := bufio.NewReader(out)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			break // half a line was not said
		}
		said = append(said, strings.TrimSpace(line))
		if len(said) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	if len(said) < lines {
		t.Fatalf("the child ended by itself: %s", stderr.String())
	}
	return said
}

func crashCheck(t *testing.T, s *Store, said []string) (nBlobs, nOffsets int) {
	t.Helper()
	// Whatever is visible is whole, acknowledged or not.
	err := s.Catalog().EachBlob(func(row catalog.BlobRow) error {
		b, err := s.Open(t.Context(), row.Digest)
		if err != nil {
			return err
		}
		defer func() { _ = b.Close() }()
		v := row.Digest.Verifier()
		if _, err := io.Copy(v, b); err != nil || !v.Verified() {
			return fmt.Errorf("%s is not whole: %s", row.Digest, fmt.Sprint(err))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	offsets := map[string]int64{}
	seeds := map[string]uint64{}
	for _, line := range said {
		var seed uint64
		var size int
		var id string
		var off int64
		if _, err := fmt.Sscanf(line, "blob %d %d", &seed, &size); err == nil {
			holdsAs(t, s, crashAlgorithm(seed), crashContent(seed, size))
			nBlobs++
		} else if _, err := fmt.Sscanf(line, "offset %s %d %d", &id, &off, &seed); err == nil {
			offsets[id], seeds[id] = off, seed
		} else {
			t.Fatalf("the child said %q", line)
		}
	}
	for id, off := range offsets {
		u, err := s.Upload(t.Context(), id)
		if errors.Is(err, ErrNotFound) {
			continue // committed, acknowledged or not
		}
		if err != nil {
			t.Fatal(err)
		}
		if u.Offset() < off {
			t.Fatalf("upload %s is at %d, %d was answered", id, u.Offset(), off)
		}
		r := rand.New(rand.NewPCG(seeds[id], 1))
		b := crashContent(seeds[id], []int{100, InlineMax + 1, 200_000, int(2*units.Unit) + 5}[r.IntN(4)])
		alg := crashAlgorithm(seeds[id])
		if _, err := u.Finish(t.Context(), bytes.NewReader(b[u.Offset():]), alg.FromBytes(b), link); err != nil {
			t.Fatalf("going on with upload %s: %v", id, err)
		}
		holdsAs(t, s, alg, b)
		nOffsets++
	}

	// No file without a row is left.
	s.Sweep(t.Context())
	err = filepath.WalkDir(filepath.Join(storeDir(s), "blobs"), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			alg := filepath.Base(filepath.Dir(filepath.Dir(path)))
			_, err = s.Stat(t.Context(), digest.NewDigestFromEncoded(digest.Algorithm(alg), e.Name()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return nBlobs, nOffsets
}

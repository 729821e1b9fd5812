package mesh

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
)

// loopback is what processors have to do for each GB that goes from one node to
// another, both ends together, on this machine's loopback, as the median of three
// moves; beside each the same of a bare copy: a file is read, sent over TLS,
// hashed and written. There is no emulated network whose accuracy would end with the
// machine's, and nodes may use all of it: a round is void if others used much.
func (b *bench) loopback(t *testing.T, name string) {
	m := mesh{cluster.StartDev(t, 2)}
	m.Must(t, 0, "project", "create", "prod")
	m.Must(t, 0, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	const moves = 3
	st := measured{near: true}
	memory := watchMemory(t, []int{m.Sites[0].PID, m.Sites[1].PID})
	var both, least []float64 // CPU-s/GB
	for i := range moves {
		img, size := benchImage(t, *benchScale)
		gb := size / 1e9
		image := "prod/app:" + strconv.Itoa(i)
		least = append(least, bare(t, int64(size))/gb)
		m.Must(t, 0, "transfer", "pause", m.Sites[1].Name)
		if err := remote.Write(m.ref(t, 0, image), img, remote.WithAuth(&authn.Basic{Username: m.Username, Password: m.Password}), remote.WithContext(t.Context())); err != nil {
			t.Fatal(err)
		}
		stop := warm(t, int64(size))
		machine, err := figures.Now()
		if err != nil {
			t.Fatal(err)
		}
		from, to := m.cpu(t, 0), m.cpu(t, 1)
		m.Must(t, 0, "transfer", "resume", m.Sites[1].Name)
		m.Must(t, 0, "wait", image, "--sites", m.Sites[1].Name, "--timeout", "120s")
		from, to = m.cpu(t, 0)-from, m.cpu(t, 1)-to
		used, err := machine.Use(from + to)
		if err != nil {
			t.Fatal(err)
		}
		st.MachineCPU, st.others = max(st.MachineCPU, used.Busy), max(st.others, used.Others)
		from, to = from/gb, to/gb
		stop()
		both = append(both, from+to)
		t.Logf("move %d: the source %.2f, the receiver %.2f, a bare copy %.2f CPU-s/GB; machine %.0f %% busy, others %.0f %%", i, from, to, least[i], 100*used.Busy, 100*used.Others)
	}
	over := make([]float64, moves)
	for i := range over {
		over[i] = both[i] / least[i]
	}
	note := fmt.Sprintf("each round the median of %d moves", moves)
	b.add(t, st, name+": processor time of both ends", median(both), "CPU-s/GB", figures.AtMost(2.5), note)
	b.add(t, st, name+": processor time over that of a bare copy", median(over), "x", nil, fmt.Sprintf("%s; bare copies over TLS, hashed and written, took %.2f CPU-s/GB", note, median(least)))
	memory.add(b, t, st, name)
}

// warm makes memory of three times size free that was in use a moment ago, until
// stop is called. A virtual machine gets a page from its host when the page is
// first used, which costs more than all that is measured here, and a kernel that
// reports free memory hands whole blocks of 2 MiB back to the host at once. So one
// page of each piece stays in use: what is free around it is no whole block.
// That does not reach all: some copies, a bare one too, still take about 4
// CPU-s/GB more than others, in the kernel, which is why each move is logged.
func warm(t *testing.T, size int64) (stop func()) {
	t.Helper()
	const piece = 2 << 20
	all, err := unix.Mmap(-1, 0, int(3*size)/piece*piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for at := 0; at < len(all); at += page {
		all[at] = 1
	}
	for p := range slices.Chunk(all, piece) {
		if err := unix.Madvise(p[:len(p)-page], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := unix.Munmap(all); err != nil {
			t.Error(err)
		}
	}
}

func (m mesh) ref(t *testing.T, i int, image string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(m.Sites[i].Host()+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// cpu is the processor time that a site's process has used, in seconds.
func (m mesh) cpu(t *testing.T, i int) float64 {
	t.Helper()
	s, err := processCPU(m.Sites[i].PID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bare copies a file over TLS on loopback, hashing and writing what comes, and
// gives the processor time that it took, of both ends.
func bare(t *testing.T, size int64) float64 {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	f, err := os.Create(source)
	if err == nil {
		_, err = io.CopyN(f, rand.Reader, size)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer warm(t, size)()
	before := selfCPU(t)
	sent := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			sent <- err
			return
		}
		conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: tls.VersionTLS13})
		defer conn.Close()
		f, err := os.Open(source)
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{f}, make([]byte, 64<<10))
			err = errors.Join(err, f.Close())
		}
		sent <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) // #nosec G402 -- loopback
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	to, err := os.Create(filepath.Join(dir, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(to, sha256.New())}, struct{ io.Reader }{conn}, make([]byte, 64<<10))
	if err = errors.Join(err, <-sent, to.Sync(), to.Close()); err != nil || n != size {
		t.Fatalf("copied %d of %d bytes: %v", n, size, err)
	}
	return selfCPU(t) - before
}

func selfCPU(t *testing.T) float64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

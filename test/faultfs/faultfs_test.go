package faultfs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// look gives a file of an image, by a path below its root.
func look(m *Image, path string) ([]byte, bool) {
	ino := uint64(rootIno)
	for _, name := range strings.Split(path, "/") {
		next, ok := m.inodes[ino].entries[name]
		if !ok {
			return nil, false
		}
		ino = next
	}
	b := make([]byte, m.inodes[ino].content.size)
	m.inodes[ino].content.read(b, 0)
	return b, true
}

func TestFS_IsAFileSystem(t *testing.T) {
	Require(t)
	dir, unmount := New(Empty()).MountT(t)
	if said := run(t, "ordinary", dir); said != "" {
		t.Error(said)
	}
	unmount()
}

// lost runs one way to keep files and gives what some crash took of what was
// acknowledged, or left half, "" if none ever did.
func lost(t *testing.T, work string) string {
	t.Helper()
	f := New(Empty())
	dir, unmount := f.MountT(t)
	if said := run(t, work, dir); said != "" {
		t.Fatal(said)
	}
	unmount()
	marks := f.Marks()
	if len(marks) != 4 {
		t.Fatalf("%d acknowledgements", len(marks))
	}
	for n := range f.Len() + 1 {
		for seed := range uint64(12) {
			m := f.Crash(n, seed)
			acked := [2]int{-1, -1}
			for i, mark := range marks {
				if mark.At <= n {
					acked[i%2] = i
				}
			}
			for name, i := range acked {
				b, ok := look(m, fmt.Sprint("file", name))
				whole := false
				for j := max(name, i); j < 4; j += 2 {
					whole = whole || ok && bytes.Equal(b, kept(j))
				}
				switch {
				case !ok && i >= 0:
					return fmt.Sprintf("operation %d, seed %d: file%d is gone", n, seed, name)
				case ok && !whole:
					return fmt.Sprintf("operation %d, seed %d: file%d is not what it was", n, seed, name)
				}
			}
		}
	}
	return ""
}

// TestFS_FindsPlantedMistakes: it must find what it is there for.
func TestFS_FindsPlantedMistakes(t *testing.T) {
	Require(t)
	if what := lost(t, "keep"); what != "" {
		t.Errorf("file, rename, directory in the right order: %s", what)
	}
	for _, work := range []string{"forget the file", "forget the name", "rename too early"} {
		if what := lost(t, work); what == "" {
			t.Errorf("%q was not found", work)
		} else {
			t.Logf("%q: %s", work, what)
		}
	}
}

func TestFS_MapsAreDurableByMsync(t *testing.T) {
	Require(t)
	f := New(Empty())
	dir, unmount := f.MountT(t)
	if said := run(t, "map", dir); said != "" {
		t.Fatal(said)
	}
	unmount()
	durable, ok := look(f.Crash(f.Len(), 0), "map")
	if !ok || len(durable) != 1<<20 || !bytes.HasPrefix(durable[5000:], []byte("through the map")) {
		t.Errorf("what was synced is not durable (there: %v, %d bytes)", ok, len(durable))
	}
	if bytes.Contains(durable, []byte("after")) {
		t.Error("what was not synced is durable")
	}
	if b, _ := look(f.Crash(f.Len(), 1), "map"); !bytes.HasPrefix(b[9000:], []byte("after the msync")) {
		t.Error("what was written never reached the file system")
	}
}

// TestFS_CrashesAreReproducible: a seed is all one needs to see a failure again.
func TestFS_CrashesAreReproducible(t *testing.T) {
	Require(t)
	f := New(Empty())
	dir, unmount := f.MountT(t)
	if said := run(t, "forget the file", dir); said != "" {
		t.Fatal(said)
	}
	unmount()
	differ := map[string]bool{}
	for seed := range uint64(20) {
		a, b := show(f.Crash(f.Len(), seed)), show(f.Crash(f.Len(), seed))
		if a != b {
			t.Errorf("seed %d gives different crashes", seed)
		}
		differ[a] = true
	}
	if len(differ) < 5 {
		t.Errorf("20 seeds give %d different crashes only", len(differ))
	}
}

func show(m *Image) string {
	var b strings.Builder
	for _, name := range []string{"file0", "file1", "file0.tmp", "file1.tmp"} {
		c, ok := look(m, name)
		fmt.Fprintf(&b, "%s %v %q\n", name, ok, c)
	}
	return b.String()
}

// TestFS_NewDirectoriesNeedTheirParentsSync: and a rename across directories is
// there once, whichever of the two was synced.
func TestFS_NewDirectoriesNeedTheirParentsSync(t *testing.T) {
	const from, to = 20, 21
	ops := []op{
		{kind: Mkdir, dir: rootIno, name: "from", ino: from},
		{kind: Mkdir, dir: rootIno, name: "to", ino: to},
		{kind: SyncDir, ino: rootIno},
		{kind: Create, dir: from, name: "f", ino: 22},
		{kind: Rename, dir: from, name: "f", toDir: to, toName: "g", ino: 22},
	}
	m := Empty()
	f := New(m)
	for _, o := range ops {
		if o.kind == Mkdir || o.kind == Create {
			f.live.inodes[o.ino] = &inode{}
			if o.kind == Mkdir {
				f.live.inodes[o.ino].entries = map[string]uint64{}
			}
		}
	}
	for _, synced := range []uint64{from, to} {
		f.ops = append(append([]op(nil), ops...), op{kind: SyncDir, ino: synced})
		for seed := range uint64(50) {
			m := f.Crash(len(f.ops), seed)
			_, old := look(m, "from/f")
			if _, now := look(m, "to/g"); old || !now {
				t.Fatalf("seed %d: old name %v, new name %v", seed, old, now)
			}
		}
	}
	f.ops = append(append([]op(nil), ops[:2]...), ops[3:]...) // nothing holds the directories
	f.ops = append(f.ops, op{kind: SyncDir, ino: to})
	if _, ok := look(f.Crash(len(f.ops), 0), "to"); ok {
		t.Error("a directory outlived a crash without its parent's fsync")
	}
	outcomes := map[[2]bool]bool{}
	for seed := range uint64(100) {
		f.ops = ops
		m := f.Crash(len(ops), seed)
		_, old := look(m, "from/f")
		_, now := look(m, "to/g")
		outcomes[[2]bool{old, now}] = true
	}
	if outcomes[[2]bool{true, true}] || len(outcomes) < 3 {
		t.Errorf("an unsynced rename came to %v", outcomes)
	}
}

func TestFS_Fails(t *testing.T) {
	Require(t)
	f := New(Empty())
	dir, unmount := f.MountT(t)
	f.Fail(Fault{Kind: Sync, Nth: 2, Errno: syscall.EIO})
	f.Fail(Fault{Kind: Write, Nth: 1, Errno: syscall.ENOSPC, Stays: true})
	f.Fail(Fault{Kind: Rename, Nth: 1, Errno: syscall.EIO})
	if said := run(t, "faults", dir); said != "" {
		t.Error(said)
	}
	if f.Failed() != 4 {
		t.Errorf("%d operations failed", f.Failed())
	}
	f.Heal()
	unmount()
}

// TestFS_CutsThePower: after the cut no process gets an answer; what is mounted
// then begins with what survived.
func TestFS_CutsThePower(t *testing.T) {
	Require(t)
	f := New(Empty())
	dir, unmount := f.MountT(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cut := f.CutAt(100)
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), workEnv+"=write until cut")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-cut
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	f.Unblock()
	said := -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if said, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatalf("it said %q after the cut", lines.Text())
		}
	}
	_ = cmd.Wait() // killed
	unmount()
	// A creation and a write each; the last word may have come too late.
	if f.Len() != 100 || said < 48 || said > 49 {
		t.Errorf("%d operations, it has said %d", f.Len(), said)
	}
	dir, unmount = New(f.Crash(f.Len(), 1)).MountT(t)
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 50 {
		t.Errorf("%d files survived: %v", len(names), err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "49")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	unmount()
}

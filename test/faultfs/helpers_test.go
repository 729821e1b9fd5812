package faultfs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// workEnv makes this binary the child that works on a file system: a program
// must not map files that it serves itself.
const workEnv = "PORTOLAN_TEST_FAULTFS_WORK"

func TestMain(m *testing.M) {
	if name := os.Getenv(workEnv); name != "" {
		if err := works[name](os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// run lets a child do works[name] in dir and gives what it said, "" if all went
// well.
func run(t *testing.T, name, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), workEnv+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out)
}

// works are what children do, by name.
var works = map[string]func(dir string) error{
	"keep":             func(dir string) error { return keep(dir, true, true, true) },
	"forget the file":  func(dir string) error { return keep(dir, false, true, true) },
	"forget the name":  func(dir string) error { return keep(dir, true, false, true) },
	"rename too early": func(dir string) error { return keep(dir, true, true, false) },
	"map":              mapped,
	"map, no msync":    mappedUnsynced,
	"ordinary":         ordinary,
	"faults":           faulty,
	"write until cut":  writeUntilCut,
}

// kept is what keep writes under each name.
func kept(i int) []byte {
	b, _ := json.Marshal(struct {
		N    int
		Fill [3000]int
	}{N: i})
	return b
}

// keep replaces files, as a store does, and acknowledges each.
func keep(dir string, syncFile, syncDir, syncFirst bool) error {
	mark, err := os.OpenFile(filepath.Join(dir, MarkFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mark.Close()
	for i := range 4 {
		final := filepath.Join(dir, fmt.Sprint("file", i%2))
		f, err := os.Create(final + ".tmp")
		if err != nil {
			return err
		}
		if _, err := f.Write(kept(i)); err != nil {
			return err
		}
		if syncFile && syncFirst {
			err = f.Sync()
		}
		err = errors.Join(err, os.Rename(final+".tmp", final))
		if syncFile && !syncFirst {
			err = errors.Join(err, f.Sync())
		}
		if syncDir {
			d, derr := os.Open(dir)
			if derr != nil {
				return derr
			}
			err = errors.Join(err, d.Sync(), d.Close())
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if _, err := fmt.Fprint(mark, i); err != nil {
			return err
		}
	}
	return nil
}

// mapped writes through a shared map as Badger does: truncate, map, msync.
func mapped(dir string) error { return mapping(dir, true) }

func mappedUnsynced(dir string) error {
	if err := mapping(dir, false); err != nil {
		return err
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func mapping(dir string, msync bool) error {
	f, err := os.Create(filepath.Join(dir, "map"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(1<<20), f.Sync()); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(b[5000:], "through the map")
	if !msync {
		return nil
	}
	if err := unix.Msync(b, unix.MS_SYNC); err != nil {
		return err
	}
	copy(b[9000:], "after the msync")
	return unix.Munmap(b)
}

// ordinary does what programs do with files and holds the answers against what
// a disk would give.
func ordinary(dir string) error {
	p := func(name string) string { return filepath.Join(dir, name) }
	want := func(name, content string) error {
		b, err := os.ReadFile(p(name))
		if err != nil || string(b) != content {
			return fmt.Errorf("%s has %q, want %q: %s", name, b, content, fmt.Sprint(err))
		}
		return nil
	}
	if err := os.MkdirAll(p("a/b"), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(p("a/b/x"), []byte("0123456789"), 0o640); err != nil {
		return err
	}
	if err := os.WriteFile(p("a/b/x"), []byte("abc"), 0o640); err != nil {
		return err
	}
	if err := want("a/b/x", "abc"); err != nil {
		return err
	}
	f, err := os.OpenFile(p("a/b/x"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("def")
	if err := errors.Join(err, f.Truncate(5), f.Close(), want("a/b/x", "abcde")); err != nil {
		return err
	}
	if err := os.Truncate(p("a/b/x"), 7); err != nil {
		return err
	}
	if err := errors.Join(want("a/b/x", "abcde\x00\x00"), os.Link(p("a/b/x"), p("y")), want("y", "abcde\x00\x00")); err != nil {
		return err
	}
	if err := os.Remove(p("a/b")); !errors.Is(err, syscall.ENOTEMPTY) {
		return fmt.Errorf("a full directory was removed: %s", fmt.Sprint(err))
	}
	if err := errors.Join(os.Rename(p("a/b/x"), p("z")), os.Remove(p("a/b")), os.Remove(p("y")), want("z", "abcde\x00\x00")); err != nil {
		return err
	}
	if _, err := os.Stat(p("y")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("y is still there: %s", fmt.Sprint(err))
	}
	if _, err := os.OpenFile(p("z"), os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("z was made twice: %s", fmt.Sprint(err))
	}
	// An open file outlives its name.
	f, err = os.Open(p("z"))
	if err != nil {
		return err
	}
	if err := os.Remove(p("z")); err != nil {
		return err
	}
	b, err := io.ReadAll(f)
	if err != nil || string(b) != "abcde\x00\x00" {
		return fmt.Errorf("a file without a name has %q: %s", b, fmt.Sprint(err))
	}
	if err := f.Close(); err != nil {
		return err
	}
	for i := range 3000 {
		if err := os.WriteFile(p(fmt.Sprintf("many%04d", i)), nil, 0o600); err != nil {
			return err
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 3001 { // and a
		return fmt.Errorf("%d names: %s", len(names), fmt.Sprint(err))
	}
	return nil
}

// faulty meets the faults that TestFS_Fails sets.
func faulty(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		return fmt.Errorf("the second fsync: %s", fmt.Sprint(err))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteString("x"); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the first write: %s", fmt.Sprint(err))
	}
	if _, err := f.WriteString("x"); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the second write: %s", fmt.Sprint(err))
	}
	if err := os.Rename(f.Name(), f.Name()+"2"); !errors.Is(err, syscall.EIO) {
		return fmt.Errorf("the rename: %s", fmt.Sprint(err))
	}
	return os.Rename(f.Name(), f.Name()+"2")
}

// writeUntilCut says each step that it has done, for as long as there is power.
func writeUntilCut(dir string) error {
	out := bufio.NewWriter(os.Stdout)
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o600)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, i)
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

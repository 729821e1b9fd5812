package mesh

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// TestDev_DiesAndComesBack kills `portolan dev` as a power cut would: its
// sites end too, and the next start has all that was acknowledged.
func TestDev_DiesAndComesBack(t *testing.T) {
	set := images.Make(t)
	dir := t.TempDir()
	m := mesh{cluster.DevIn(t, dir, 3)}
	m.skopeoPush(t, 0, set.Layout("base"), "library/kept:1")
	m.Must(t, 2, "project", "create", "kept")
	want, err := m.digest(t, 0, "library/kept:1")
	if err != nil {
		t.Fatal(err)
	}

	m.Dev.Kill()
	for _, s := range m.Sites {
		cluster.Eventually(t, cluster.Patience, s.Name+" ends with dev", func() error {
			if err := syscall.Kill(s.PID, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("pid %d is still there", s.PID)
			}
			return nil
		})
	}

	again := mesh{cluster.DevAt(t, dir, 3, m.BasePort)}
	if again.Password != m.Password || again.Username != m.Username {
		t.Errorf("the administrator was %s/%s and is %s/%s", m.Username, m.Password, again.Username, again.Password)
	}
	for i := range again.Sites {
		cluster.Eventually(t, cluster.Patience, "the image is at "+again.Sites[i].Name, func() error {
			got, err := again.digest(t, i, "library/kept:1")
			if err == nil && got != want {
				err = fmt.Errorf("digest %s, want %s", got, want)
			}
			return err
		})
		again.Must(t, i, "project", "show", "kept")
	}

	// What it refuses leaves the running mesh alone.
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--sites", "3"}, "in use"},
		{[]string{"--sites", "0"}, "--sites"},
		{[]string{"--sites", "3", "--base-port", "65530"}, "--base-port"},
	} {
		refused(t, append([]string{"dev", "--data", dir}, c.args...), c.says)
	}
	again.Dev.Stop(t)
	if err := again.Dev.Err(); err != nil {
		t.Errorf("portolan dev ended with %v", err)
	}
	if strings.Contains(again.Dev.Output(), "panic") {
		t.Error("something panicked")
	}
	refused(t, []string{"dev", "--data", dir, "--sites", "2", "--base-port", fmt.Sprint(m.BasePort)}, "--sites 3")
	refused(t, []string{"dev", "--data", dir, "--sites", "3", "--base-port", fmt.Sprint(m.BasePort + 1)}, "--base-port")
	if _, err := os.Stat(filepath.Join(dir, "dev.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dev.json of a mesh that was stopped: %v", err)
	}
}

// TestDev_GivenPassword: PORTOLAN_ADMIN_PASSWORD makes the first administrator,
// and later starts need it no more.
func TestDev_GivenPassword(t *testing.T) {
	dir := t.TempDir()
	base := cluster.BasePort(t, 10)
	const password = "Given-secret-1"
	p := cluster.Start(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + password, "PORTOLAN_UNKNOWN=1"},
		"dev", "--sites", "1", "--data", dir, "--base-port", fmt.Sprint(base))
	m := mesh{cluster.AwaitDev(t, p, dir, 1, base)}
	if m.Password != password {
		t.Errorf("dev.json has password %q", m.Password)
	}
	if status := m.status(t, 0, "/v2/", "admin", password); status != 200 {
		t.Errorf("login with the given password: %d", status)
	}
	if out := p.Output(); strings.Contains(out, "password "+password) && strings.Contains(out, "it is kept in") {
		t.Error("a given password is said to be kept")
	}
	cluster.Eventually(t, cluster.Patience, "it warns of an unknown variable", func() error { return said(p, "PORTOLAN_UNKNOWN") })
	if _, err := os.Stat(filepath.Join(dir, "site1", "admin-password")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a given password is in a file of the node: %v", err)
	}
	p.Stop(t)
	again := mesh{cluster.DevAt(t, dir, 1, base)}
	if again.Password != password {
		t.Errorf("dev.json of the next start has password %q", again.Password)
	}
}

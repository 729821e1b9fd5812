package config

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestLoad_Witness: the kind of a node is said once, kept, and never changed.
func TestLoad_Witness(t *testing.T) {
	dir := t.TempDir()
	cfg, _, err := load(t, nil, "--data", dir, "--site", "wit", "--witness")
	if err != nil || !cfg.Witness {
		t.Fatalf("%+v, %v", cfg, err)
	}
	if err := cfg.Save(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env, args []string
		want      string // error; empty: a witness
	}{
		{nil, nil, ""},
		{nil, []string{"--witness"}, ""},
		{[]string{"PORTOLAN_WITNESS=true"}, nil, ""},
		{nil, []string{"--witness=false"}, "is that of a witness, and a node does not change its kind"},
		{[]string{"PORTOLAN_WITNESS=false"}, nil, "does not change its kind"},
		{nil, []string{"--witness=perhaps"}, `"perhaps" is not one of`},
		{nil, []string{"--store-driver", "s3"}, "a witness holds no content"},
	} {
		cfg, _, err := load(t, c.env, append([]string{"--data", dir}, c.args...)...)
		switch {
		case c.want == "" && (err != nil || !cfg.Witness || cfg.Site != "wit"):
			t.Errorf("%q %q: %+v, %v", c.env, c.args, cfg, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q %q: %v, want %q", c.env, c.args, err, c.want)
		}
	}
	content := t.TempDir()
	write(t, filepath.Join(content, SettingsName), "site: fra\n")
	if _, _, err := load(t, nil, "--data", content, "--witness"); err == nil || !strings.Contains(err.Error(), "is that of a node that holds content") {
		t.Errorf("a node with content became a witness: %v", err)
	}
	if cfg, _, err := load(t, nil, "--data", content); err != nil || cfg.Witness {
		t.Errorf("%+v, %v", cfg, err)
	}
}

package config

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoad_StoreParameters(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, FileName), `
store-driver: s3
store-parameters:
  bucket: layers
  region: eu-central-1
  secure: false
  chunksize: 20971520
  credentials: {type: shared_key}
store-redirect: true
`)
	cfg, warnings, err := load(t, []string{`PORTOLAN_STORE_PARAMETERS=accesskey=KEY,"secretkey=a,b""c"`, "PORTOLAN_STORE_REDIRECT=true"},
		"--data", dir, "--store-parameters", "bucket=other", "--store-parameters", "rootdirectory=/x")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := map[string]string{"bucket": "other", "region": "eu-central-1", "secure": "false", "chunksize": "20971520", "credentials.type": "shared_key",
		"accesskey": "KEY", "secretkey": `a,b"c`, "rootdirectory": "/x"}
	if cfg.StoreDriver != "s3" || !cfg.StoreRedirect || !maps.Equal(cfg.StoreParameters, want) {
		t.Fatalf("%+v", cfg)
	}
	if err := cfg.Save(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, SettingsName))
	if err != nil || strings.Contains(string(b), "store") || strings.Contains(string(b), "KEY") {
		t.Fatalf("saved, %v:\n%s", err, b)
	}
}

func TestLoad_BadStoreParameters(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--store-driver", "swift"}, `"swift" is not one of disk, s3, gcs, azure`},
		{[]string{"--store-parameters", "bucket=b"}, "name one with --store-driver"},
		{[]string{"--store-redirect", "true"}, "name one with --store-driver"},
		{[]string{"--store-driver", "s3", "--store-parameters", "s3cr3t"}, "pair 1 is not KEY=VALUE"},
		{[]string{"--store-driver", "s3", "--store-parameters", "a=b,Key=s3cr3t"}, "pair 2 is not KEY=VALUE"},
		{[]string{"--store-driver", "s3", "--store-parameters", "secretkey="}, "secretkey has no value"},
		{[]string{"--store-driver", "s3", "--store-parameters", `secretkey=s3"cr3t`}, "quotation mark"},
		{[]string{"--store-driver", "s3", "--store-parameters", "a=s3cr3t\nb=c"}, "on one line"},
	} {
		_, _, err := load(t, nil, append([]string{"--data", t.TempDir()}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func FuzzPairs(f *testing.F) {
	f.Add("a=b")
	f.Add(`a=b,"c.d=e,f""g"`)
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parsePairs(s)
		if err != nil {
			return
		}
		text, err := pairsText(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parsePairs(text)
		if err != nil || !maps.Equal(m, again) {
			t.Fatalf("%q: %v becomes %q, %v: %v", s, m, text, again, err)
		}
	})
}

package peer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKernelAdvice(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string // a part of each sentence
	}{
		"tuned": {files: map[string]string{"tcp_rmem": "4096\t131072\t67108864\n", "tcp_wmem": "4096 65536 134217728", "tcp_congestion_control": "bbr\n"}},
		"as most machines come": {
			files: map[string]string{"tcp_rmem": "4096 131072 6291456", "tcp_wmem": "4096 16384 4194304", "tcp_congestion_control": "cubic"},
			want: []string{
				"receives at most about 252 Mbit/s over a link of 100 ms",
				`sends at most about 336 Mbit/s over a link of 100 ms, because net.ipv4.tcp_wmem ends at 4194304 bytes: set net.ipv4.tcp_wmem="4096 65536 67108864"`,
				"congestion control is cubic",
			},
		},
		"not Linux":       {},
		"in another form": {files: map[string]string{"tcp_rmem": "lots", "tcp_wmem": "1 2 x"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got := kernelAdvice(dir)
			if len(got) != len(c.want) {
				t.Fatalf("got %q", got)
			}
			for i, want := range c.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("got %q, want %q in it", got[i], want)
				}
			}
		})
	}
}

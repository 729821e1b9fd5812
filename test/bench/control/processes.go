package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
)

// processes has package test/mesh measure a case with real processes, which its
// helpers start and end. Its figures are kept even if it fails.
func (r *run) processes(ctx context.Context, name string) error {
	out := filepath.Join(r.dir, "rows.json")
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", (r.soak + 30*time.Minute).String(), "-run", "^TestBenchControl$", "-v",
		"github.com/portolan/portolan/test/mesh", "-args", "-control.bench", "-control.run", "^"+name+"$", "-control.soak", r.soak.String(), "-control.out", out)
	cmd.Env = append(os.Environ(), "TMPDIR="+r.dir) // the disk to measure
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	rows, rerr := figures.Read(out)
	if rerr != nil {
		return rerr
	}
	r.rows = append(r.rows, rows...)
	if err != nil {
		for _, row := range rows {
			if row.Strict && row.Missed() {
				return nil // which the table says, and the command's end
			}
		}
		return fmt.Errorf("go test: %w", err)
	}
	return nil
}

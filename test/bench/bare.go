package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// bare is the floor under uploads: net/http, one write and one hash of each
// byte, one sync and a rename, and nothing of a registry. What it cannot do
// faster no registry in Go can: it shows what of a figure is the machine's.
const bare = "bare"

// startBare runs this program again, as a bare receiver.
func (b *bench) startBare(ctx context.Context, dir string, _ *certificate) (*server, error) {
	p, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{name: bare, addr: fmt.Sprintf("127.0.0.1:%d", p[0]), dir: dir}
	return s, s.start(ctx, "/v2/", exec.CommandContext(context.WithoutCancel(ctx), self, bare, s.addr, dir))
}

// runBare serves until it is killed.
func runBare(addr, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v2/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Path+rand.Text())
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("PUT /v2/", func(w http.ResponseWriter, r *http.Request) {
		if err := receive(r.Body, filepath.Join(dir, filepath.Base(r.URL.Path)), r.URL.Query().Get("digest")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	srv := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return srv.ListenAndServe()
}

// bareBuffer is the piece that ours uses.
const bareBuffer = 256 << 10

func receive(r io.Reader, name, digest string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, bareBuffer)
	for {
		n, rerr := io.ReadFull(r, buf)
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		h.Write(buf[:n])
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break // a body that broke off has another digest
		}
		if rerr != nil {
			return rerr
		}
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("%s came as %s", digest, got)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(name, name+".blob")
}

package faultfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// workerEnv makes a test binary the child that works on a file system which the
// test serves. Its value is of no meaning.
const workerEnv = "PORTOLAN_TEST_WORKER"

// ServeWorker is for TestMain. In a child that [StartWorker] made it answers
// requests with handle until its parent lets go of it, and ends the process; in
// any other process it returns at once.
func ServeWorker(handle func(request json.RawMessage) error) {
	if os.Getenv(workerEnv) == "" {
		return
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var request json.RawMessage
		err := in.Decode(&request)
		if errors.Is(err, io.EOF) {
			os.Exit(0)
		}
		var answer string
		if err == nil {
			err = handle(request)
		}
		if err != nil {
			answer = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			os.Exit(1)
		}
	}
}

// Worker is a child process of a test.
type Worker struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	stderr bytes.Buffer
}

// StartWorker starts this test binary as a child, until the test ends.
func StartWorker(t testing.TB) *Worker {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &Worker{cmd: exec.CommandContext(context.Background(), self)} // its input ends it, see Wait
	w.cmd.Env = append(os.Environ(), workerEnv+"=1")
	w.cmd.Stderr = &w.stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = json.NewDecoder(out)
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Wait)
	return w
}

// Wait lets the worker end, and waits for that.
func (w *Worker) Wait() {
	_ = w.in.Close()
	_ = w.cmd.Wait() // how it ended was told by Do
}

// Do sends a request and waits for the answer. It is an error as well if the
// worker died over it.
func (w *Worker) Do(request any) error {
	if err := json.NewEncoder(w.in).Encode(request); err != nil {
		return fmt.Errorf("ask the worker: %w\n%s", err, w.stderr.String())
	}
	var answer string
	if err := w.out.Decode(&answer); err != nil {
		return fmt.Errorf("the worker gave no answer: %w\n%s", err, w.stderr.String())
	}
	if answer != "" {
		return errors.New(answer)
	}
	return nil
}

// Kill ends the worker at once.
func (w *Worker) Kill() error { return w.cmd.Process.Kill() }

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// stages runs the parts of a node. A part is started after those that it needs
// and is stopped, and waited for, before them: the opposite order. A part that
// ends by itself ends the node.
type stages struct {
	log     *slog.Logger
	ended   chan error // first unexpected end; room for one
	running []*running
}

type running struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // after done
}

func newStages(log *slog.Logger) *stages {
	return &stages{log: log, ended: make(chan error, 1)}
}

// start runs a part until stop. Its context is not the node's: it is cancelled
// when its turn comes, not when the node is asked to end.
func (s *stages) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{name: name, cancel: cancel, done: make(chan struct{})}
	s.running = append(s.running, r)
	go func() {
		defer close(r.done)
		r.err = run(ctx)
		if ctx.Err() != nil {
			return // it was asked to
		}
		err := r.err
		if err == nil {
			err = errors.New("it ended by itself")
		}
		select {
		case s.ended <- fmt.Errorf("%s: %w", name, err):
		default:
		}
	}()
}

// stop ends all parts, last started first, and tells what went wrong.
func (s *stages) stop() error {
	var errs []error
	for i := len(s.running) - 1; i >= 0; i-- {
		r := s.running[i]
		r.cancel()
		<-r.done
		s.log.Debug("part has stopped", "part", r.name)
		if r.err != nil && !errors.Is(r.err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, r.err))
		}
	}
	s.running = nil
	return errors.Join(errs...)
}

package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

// Libraries log in words of their own and as often as the network makes them;
// these bound what anybody who can send us a packet may write to our disk.
const (
	libraryLinesPerSecond = 5
	libraryLinesBurst     = 50
)

// limiter drops lines above the rate and tells their number with the next one.
type limiter struct {
	rate    *rate.Limiter
	dropped atomic.Uint64
}

func newLimiter() *limiter {
	return &limiter{rate: rate.NewLimiter(libraryLinesPerSecond, libraryLinesBurst)}
}

func (l *limiter) log(log *slog.Logger, level slog.Level, msg string, args ...any) {
	if !log.Enabled(context.Background(), level) {
		return
	}
	// Debug lines are not bounded: who asks for them wants them all.
	if level > slog.LevelDebug && !l.rate.Allow() {
		l.dropped.Add(1)
		return
	}
	if n := l.dropped.Swap(0); n > 0 {
		args = append(args, "dropped_lines", n)
	}
	log.Log(context.Background(), level, msg, args...)
}

// StdLog makes a standard logger for a library that marks its levels by words
// in brackets ("[WARN] memberlist: …"). Warnings and errors become warnings
// (what is an error for the library is one try of many for us), all else is
// debug, and so is what repeats says (it may be nil). The constant message is
// name; the library's text is the attribute "detail".
func StdLog(l *slog.Logger, name string, repeats Repeats) *log.Logger {
	return log.New(&stdWriter{log: l, name: name, repeats: repeats, limit: newLimiter()}, "", 0)
}

type stdWriter struct {
	log     *slog.Logger
	name    string
	repeats Repeats
	limit   *limiter
}

func (w *stdWriter) Write(p []byte) (int, error) {
	level, text := slog.LevelDebug, bytes.TrimSpace(p)
	for _, mark := range []string{"[WARN]", "[WARNING]", "[ERR]", "[ERROR]"} {
		if bytes.HasPrefix(text, []byte(mark)) {
			level = slog.LevelWarn
		}
	}
	if bytes.HasPrefix(text, []byte("[")) {
		if i := bytes.IndexByte(text, ']'); i > 0 {
			text = bytes.TrimSpace(text[i+1:])
		}
	}
	text = bytes.TrimPrefix(text, []byte(w.name+": "))
	if level > slog.LevelDebug && w.repeats != nil && w.repeats(string(text)) {
		level = slog.LevelDebug
	}
	w.limit.log(w.log, level, w.name, "detail", string(text))
	return len(p), nil
}

// Repeats reports whether a library's warning or error only repeats what the
// node says in words of its own: such a line becomes debug.
type Repeats func(msg string, args ...any) bool

// HCLog makes an hclog.Logger that writes to l. Warnings and errors keep their
// level, unless they repeat something (repeats may be nil); the rest is debug,
// since what a library finds worth telling is detail to our users. The message
// is name, the library's text the attribute "detail".
func HCLog(l *slog.Logger, name string, repeats Repeats) hclog.Logger {
	return &hcLogger{log: l, name: name, repeats: repeats, limit: newLimiter()}
}

type hcLogger struct {
	log     *slog.Logger
	name    string
	implied []any
	repeats Repeats
	limit   *limiter
}

func hcLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelDebug
	}
}

func (h *hcLogger) enabled(l hclog.Level) bool {
	return h.log.Enabled(context.Background(), hcLevel(l))
}

func (h *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	if level == hclog.Off || !h.enabled(level) {
		return
	}
	if level >= hclog.Warn && h.repeats != nil && h.repeats(msg, args...) {
		if level = hclog.Debug; !h.enabled(level) {
			return
		}
	}
	attrs := make([]any, 0, 4+len(h.implied)+len(args))
	attrs = append(attrs, "detail", msg)
	attrs = append(attrs, h.implied...)
	attrs = append(attrs, args...)
	for i := 1; i < len(attrs); i += 2 {
		if f, ok := attrs[i].(hclog.Format); ok && len(f) > 0 {
			if s, ok := f[0].(string); ok {
				attrs[i] = fmt.Sprintf(s, f[1:]...)
			}
		}
	}
	h.limit.log(h.log, hcLevel(level), h.name, attrs...)
}

func (h *hcLogger) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }
func (h *hcLogger) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLogger) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hcLogger) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLogger) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

// IsTrace is false: slog has no such level, and libraries pay for the answer.
func (h *hcLogger) IsTrace() bool { return false }
func (h *hcLogger) IsDebug() bool { return h.enabled(hclog.Debug) }
func (h *hcLogger) IsInfo() bool  { return h.enabled(hclog.Info) }
func (h *hcLogger) IsWarn() bool  { return h.enabled(hclog.Warn) }
func (h *hcLogger) IsError() bool { return h.enabled(hclog.Error) }

func (h *hcLogger) ImpliedArgs() []any { return h.implied }

func (h *hcLogger) With(args ...any) hclog.Logger {
	v := *h
	v.implied = append(append([]any(nil), h.implied...), args...)
	return &v
}

func (h *hcLogger) Name() string { return h.name }

func (h *hcLogger) Named(name string) hclog.Logger {
	if h.name != "" {
		name = h.name + "." + name
	}
	return h.ResetNamed(name)
}

func (h *hcLogger) ResetNamed(name string) hclog.Logger {
	v := *h
	v.name = name
	return &v
}

// SetLevel does nothing: the process's logger has the level.
func (h *hcLogger) SetLevel(hclog.Level) {}

func (h *hcLogger) GetLevel() hclog.Level {
	for _, l := range []hclog.Level{hclog.Debug, hclog.Warn, hclog.Error} {
		if h.enabled(l) {
			return l
		}
	}
	return hclog.Off
}

func (h *hcLogger) StandardLogger(opts *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(opts), "", 0)
}

func (h *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return &stdWriter{log: h.log, name: strings.ToLower(h.name), repeats: h.repeats, limit: h.limit}
}

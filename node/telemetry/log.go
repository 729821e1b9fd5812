package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Formats of log lines, as `--log-format` names them.
const (
	FormatText = "text" // one line for a person
	FormatJSON = "json" // one JSON object
)

// ParseLevel reads debug, info, warn or error.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q is not known: use debug, info, warn or error", s)
}

// NewLogger makes a logger that writes to w. level and format are what
// [ParseLevel] and the Format constants name; both may be empty (info, text).
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	l, err := ParseLevel(level)
	if err != nil {
		return nil, err
	}
	switch strings.ToLower(format) {
	case "", FormatText:
		return slog.New(&lineHandler{w: w, mu: new(sync.Mutex), level: l}), nil
	case FormatJSON:
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
	}
	return nil, fmt.Errorf("log format %q is not known: use text or json", format)
}

// lineHandler writes lines for people:
//
//	15:04:05.000 INFO  site joined  site=sgp node=12D3KooW…
//
// Control characters never reach the terminal: values that hold any are quoted.
type lineHandler struct {
	w      io.Writer
	mu     *sync.Mutex // one Write per line, shared by derived handlers
	level  slog.Level
	attrs  []byte // rendered, each with a blank before it
	prefix string // of groups, with dots
}

// Enabled implements slog.Handler.
func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 256)
	if !r.Time.IsZero() {
		b = r.Time.AppendFormat(b, "15:04:05.000")
		b = append(b, ' ')
	}
	b = fmt.Appendf(b, "%-5s ", r.Level.String())
	b = appendText(b, r.Message, false)
	n := len(b)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.prefix, a)
		return true
	})
	if len(b) > n { // two blanks set attributes off from the message
		b = slices.Insert(b, n, ' ')
	}
	b = append(b, '\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b)
	return err
}

// WithAttrs implements slog.Handler.
func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	v := *h
	v.attrs = bytes.Clone(h.attrs)
	for _, a := range attrs {
		v.attrs = appendAttr(v.attrs, h.prefix, a)
	}
	return &v
}

// WithGroup implements slog.Handler.
func (h *lineHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	v := *h
	v.prefix += name + "."
	return &v
}

func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			b = appendAttr(b, prefix, g)
		}
		return b
	}
	b = append(b, ' ')
	b = appendText(b, prefix+a.Key, true)
	b = append(b, '=')
	if v.Kind() == slog.KindTime {
		return v.Time().AppendFormat(b, time.RFC3339Nano)
	}
	return appendText(b, v.String(), true)
}

// appendText appends s, quoted if it holds what could be taken for something
// else: control characters always, and blanks, quotes and = in a value.
func appendText(b []byte, s string, value bool) []byte {
	quote := value && s == ""
	for _, r := range s {
		if !unicode.IsPrint(r) || value && (r == ' ' || r == '"' || r == '=') {
			quote = true
			break
		}
	}
	if quote {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

package registryapi

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"
)

// logged writes one line per request, and bounds how long a client may stand
// still in it. What it puts around the ResponseWriter passes ReadFrom on:
// net/http turns that into sendfile, and hiding it would double the cost of
// every pull.
func (s *Server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		rec := &recorder{ResponseWriter: w, rc: http.NewResponseController(w), stall: s.stall, tls: r.TLS != nil, cork: corkOf(r)}
		rec.begin(r)
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					s.log.LogAttrs(r.Context(), slog.LevelError, "request panicked: this is a fault of Portolan's, please report it",
						slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				}
				panic(http.ErrAbortHandler) // net/http closes the connection, and is silent
			}
			rec.end(r, s.leftover)
		}()
		defer func() {
			level := slog.LevelDebug
			switch {
			case r.URL.Path == "/readyz":
				// Asked every second by whoever starts the node: "not yet" is no fault.
			case rec.status >= 500:
				level = slog.LevelWarn
			case rec.status >= 400 && rec.status != http.StatusUnauthorized && rec.status != http.StatusNotFound:
				// 401 and 404 are every client's way of asking.
				level = slog.LevelInfo
			}
			if !s.log.Enabled(r.Context(), level) {
				return
			}
			s.log.LogAttrs(r.Context(), level, "request",
				slog.String("method", r.Method),
				slog.String("proto", r.Proto),
				slog.String("path", clip(r.URL.Path)), // without the query: tokens travel there
				slog.Int("status", rec.Status()),
				slog.Int64("bytes", rec.bytes),
				slog.Duration("took", time.Since(begin)),
				slog.String("remote", r.RemoteAddr),
				slog.String("agent", clip(r.UserAgent())))
		}()
		next.ServeHTTP(rec, r)
	})
}

// clip shortens what a client sent for the log: a head may have 64 KiB.
func clip(s string) string {
	const most = 512 // names, and a tag or digest, fit
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// recorder notes what a handler answered.
type recorder struct {
	http.ResponseWriter
	rc     *http.ResponseController // recorders in tests have no deadlines: its errors mean nothing
	stall  time.Duration
	tls    bool        // no sendfile
	cork   *corkedConn // below TLS; nil: there is none
	status int
	bytes  int64
}

// begin sets the deadlines that hold until a handler sets its own: those of the
// connection's last request are not this one's.
func (r *recorder) begin(req *http.Request) {
	_ = r.rc.SetWriteDeadline(time.Time{})
	if req.ContentLength != 0 {
		_ = r.rc.SetReadDeadline(time.Now().Add(r.stall))
	}
}

// end bounds what net/http does after the handler: it sends what is buffered,
// and reads what the handler left of the body, to use the connection again.
func (r *recorder) end(req *http.Request, leftover time.Duration) {
	// The rest of the body is awaited before a small answer is written: it must
	// not use up the answer's time.
	_ = r.rc.SetWriteDeadline(time.Now().Add(leftover + r.stall))
	if req.ContentLength != 0 {
		_ = r.rc.SetReadDeadline(time.Now().Add(leftover))
	}
}

// Status is what was answered: 200 if the handler never said.
func (r *recorder) Status() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 { // 1xx come before the answer
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	_ = r.rc.SetWriteDeadline(time.Now().Add(r.stall))
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// ReadFrom lets io.Copy reach the connection's sendfile; over TLS it takes large
// pieces instead.
func (r *recorder) ReadFrom(src io.Reader) (n int64, err error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	switch rf, ok := r.ResponseWriter.(io.ReaderFrom); {
	case r.cork != nil:
		r.cork.cork()
		n, err = copyPieces(r.ResponseWriter, src)
		// What net/http itself still holds of the body follows uncorked.
		err = errors.Join(err, r.cork.uncork())
	case ok && !r.tls:
		n, err = rf.ReadFrom(src)
	default:
		n, err = copyPieces(r.ResponseWriter, src)
	}
	r.bytes += n
	return n, err
}

// writerOnly hides everything but Write, or io.Copy would come back to ReadFrom.
type writerOnly struct{ io.Writer }

// Flush implements http.Flusher where the connection does.
func (r *recorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap gives http.ResponseController the rest (deadlines, hijacking).
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

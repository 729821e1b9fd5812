package rest

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// StreamStall is how long a client of a stream may take nothing before it is
// given up.
const StreamStall = 30 * time.Second

// Stream is an answer that is no JSON and is written while it is made.
type Stream struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition" doc:"The file's name"`
	Body        func(huma.Context)
}

// StreamOf answers with what write writes, as a file of that name. An error
// before the first byte is answered as any other; after it the connection is cut,
// so that a client cannot take the part for the whole.
func StreamOf(a *API, op, name string, write func(context.Context, io.Writer) error) *Stream {
	return &Stream{ContentType: "application/octet-stream", Disposition: `attachment; filename="` + name + `"`, Body: func(ctx huma.Context) {
		_, w := humago.Unwrap(ctx)
		out := &streamed{w: w, rc: http.NewResponseController(w)}
		err := write(ctx.Context(), out)
		if err == nil {
			// What is left in buffers goes out within the limit, too. The connection
			// lives on for other requests.
			_ = out.rc.Flush()
			_ = out.rc.SetWriteDeadline(time.Time{})
			return
		}
		answer := a.answer(ctx.Context(), op, err)
		if out.begun {
			a.cfg.Logger.WarnContext(ctx.Context(), "an answer was cut short", "operation", op, "err", err)
			panic(http.ErrAbortHandler)
		}
		w.Header().Del("Content-Disposition")
		a.write(w, answer)
	}}
}

// streamed gives the client new time with each piece.
type streamed struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

func (s *streamed) Write(p []byte) (int, error) {
	s.begun = true
	// Not every writer knows deadlines (tests' recorders do not).
	_ = s.rc.SetWriteDeadline(time.Now().Add(StreamStall))
	return s.w.Write(p)
}

package v2

import (
	"io"
	"net/http"
	"time"
)

// Bodies may be of any length and links of any speed, so there is no time
// limit for a whole transfer, only for standing still.
const (
	// DefaultStall is how long a client may take for the next piece: longer than
	// TCP needs to get over a lost link, shorter than people wait.
	DefaultStall = 2 * time.Minute
	// pieceBytes is the piece of a download after which the limit starts anew:
	// slower than some 9 KiB/s is taken for dead.
	pieceBytes = 1 << 20
	// bodyPieceBytes is the same for an upload: slower than 1 KiB/s is taken for
	// somebody who wants to hold a connection and a buffer, a byte at a time.
	bodyPieceBytes = 128 << 10
)

// body reads the request's body under a rolling deadline.
type body struct {
	left  int // of the piece that the deadline is for
	r     io.Reader
	rc    *http.ResponseController
	stall time.Duration
}

func (q *request) content() io.Reader {
	return &body{r: q.Body, rc: http.NewResponseController(q.w), stall: q.stall}
}

func (b *body) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.left = bodyPieceBytes
		_ = b.rc.SetReadDeadline(time.Now().Add(b.stall)) // recorders in tests have none
	}
	n, err := b.r.Read(p)
	b.left -= n
	if err != nil {
		_ = b.rc.SetReadDeadline(time.Time{}) // the connection's next request has its own
	}
	if err != nil && err != io.EOF {
		err = &bodyFault{err}
	}
	return n, err
}

// bodyFault is what kept a request's body from being read: the client's doing,
// whatever it is.
type bodyFault struct{ err error }

func (f *bodyFault) Error() string { return "read the request's body: " + f.err.Error() }
func (f *bodyFault) Unwrap() error { return f.err }

// paced writes the answer's body under a rolling deadline. It keeps ReadFrom,
// and hands each piece on as an *io.LimitedReader around the original file,
// which is the shape that the net package turns into sendfile.
type paced struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
}

func newPaced(w http.ResponseWriter, stall time.Duration) *paced {
	return &paced{ResponseWriter: w, rc: http.NewResponseController(w), stall: stall}
}

func (p *paced) Write(b []byte) (int, error) {
	_ = p.rc.SetWriteDeadline(time.Now().Add(p.stall))
	return p.ResponseWriter.Write(b)
}

func (p *paced) ReadFrom(src io.Reader) (int64, error) {
	left, limited := int64(-1), false
	if lr, ok := src.(*io.LimitedReader); ok {
		src, left, limited = lr.R, lr.N, true
	}
	var total int64
	for !limited || left > 0 {
		piece := int64(pieceBytes)
		if limited {
			piece = min(piece, left)
		}
		_ = p.rc.SetWriteDeadline(time.Now().Add(p.stall))
		n, err := io.Copy(p.ResponseWriter, &io.LimitedReader{R: src, N: piece})
		total += n
		left -= n
		if err != nil || n < piece {
			return total, err
		}
	}
	return total, nil
}

// done takes the deadline off, for the connection's next request.
func (p *paced) done() { _ = p.rc.SetWriteDeadline(time.Time{}) }

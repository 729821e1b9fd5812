package registryapi

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/portolan/portolan/registryapi/apitest"
)

// frames is an HTTP/2 connection whose frames the test writes itself.
type frames struct {
	*http2.Framer
	conn *tls.Conn
	head bytes.Buffer
	enc  *hpack.Encoder
}

func (tg *target) frames(t *testing.T) *frames {
	t.Helper()
	c, err := tls.Dial("tcp", tg.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	f := &frames{Framer: http2.NewFramer(c, c), conn: c}
	f.enc = hpack.NewEncoder(&f.head)
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask opens a stream.
func (f *frames) ask(stream uint32, method, path string, end bool) error {
	f.head.Reset()
	for _, h := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "x"}, {":path", path},
		{"authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+apitest.AdminPassword))}} {
		if err := f.enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return err
		}
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.head.Bytes(), EndHeaders: true, EndStream: end})
}

// One HTTP/2 connection opens and resets streams as fast as it can, and another
// opens as many as it likes and stands still in each: both are bounded, and
// nothing is left of them.
func TestAbuse_HTTP2(t *testing.T) {
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	cert := pair.TLS.Certificates[0]
	pair.Close()
	tg := newTargetTLS(t, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}})
	before := runtime.NumGoroutine()

	f := tg.frames(t)
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := frame.(*http2.SettingsFrame); !ok {
		t.Errorf("the first frame is %v", frame)
	} else if n, ok := s.Value(http2.SettingMaxConcurrentStreams); !ok || n != MaxStreams {
		t.Errorf("%d streams at once, want %d", n, MaxStreams)
	}
	// Nobody reads what the server says to this.
	for i := range uint32(20_000) {
		if f.ask(2*i+1, "GET", "/v2/prod/app/manifests/1", true) != nil || f.WriteRSTStream(2*i+1, http2.ErrCodeCancel) != nil {
			break // cut off: as good
		}
	}
	_ = f.conn.Close()

	f = tg.frames(t)
	for i := range uint32(2 * MaxStreams) {
		if err := f.ask(2*i+1, "PUT", "/v2/prod/app/manifests/1", false); err != nil {
			t.Fatal(err)
		}
	}
	refused, answered := 0, 0
	for refused+answered < 2*MaxStreams {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("after %d refused and %d answered: %v", refused, answered, err)
		}
		switch frame := frame.(type) {
		case *http2.RSTStreamFrame:
			if frame.ErrCode == http2.ErrCodeRefusedStream || frame.ErrCode == http2.ErrCodeProtocol {
				refused++
			}
		case *http2.HeadersFrame: // 408, when the stall is over
			answered++
		}
	}
	// More may be taken where the first were answered before the last were asked.
	if answered < MaxStreams || refused == 0 {
		t.Errorf("%d streams were taken and %d refused, want some %d each", answered, refused, MaxStreams)
	}
	_ = f.conn.Close()
	settles(t, before)
}

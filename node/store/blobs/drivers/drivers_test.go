package drivers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/aws/aws-sdk-go/aws/awserr"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"google.golang.org/api/googleapi"
)

func TestNew(t *testing.T) {
	for name, c := range map[string]struct {
		driver string
		p      map[string]string
		place  string
	}{
		"s3":    {"s3", map[string]string{"bucket": "b", "region": "eu-central-1", "accesskey": "k", "secretkey": "s", "rootdirectory": "/a/b/", "chunksize": "20000000"}, "s3 b/a/b"},
		"azure": {"azure", map[string]string{"container": "c", "accountname": "n", "accountkey": "c2VjcmV0", "credentials.type": "shared_key", "max_retries": "3"}, "azure n/c"},
	} {
		b, err := New(t.Context(), c.driver, c.p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b.Place != c.place || b.Driver == nil || b.MaxObject < 100<<30 || (c.driver == "s3" && b.Part != 20_000_000) {
			t.Errorf("%s: %+v", name, b)
		}
	}
	for _, c := range []struct {
		driver string
		p      map[string]string
		want   string
	}{
		{"swift", nil, `no storage driver "swift": use one of azure, gcs, s3`},
		{"s3", map[string]string{"region": "eu-central-1"}, `needs the parameter "bucket"`},
		{"azure", map[string]string{"bucket": "b"}, `has no parameter "bucket"`},
		{"s3", map[string]string{"bucket": "b", "regoin": "x"}, `has no parameter "regoin"`},
		{"s3", map[string]string{"bucket": "b"}, "no region parameter provided"},
		{"s3", map[string]string{"bucket": "b", "region": "eu-central-1", "chunksize": "many"}, "not a number of bytes"},
		{"gcs", map[string]string{"bucket": "b", "keyfile": "/does/not/exist"}, "no such file"},
		{"azure", map[string]string{"container": "c", "accountname": "n", "accountkey": "s3cr3t!", "credentials.type": "shared_key"}, "storage driver azure"},
	} {
		_, err := New(t.Context(), c.driver, c.p)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "s3cr3t!") {
			t.Errorf("%s %v: %v, want %q", c.driver, c.p, err, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	status := func(code int) error {
		return awserr.NewRequestFailure(awserr.New("Some", "text", nil), code, "id")
	}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{status(403), true},
		{status(404), true},
		{status(503), false},
		{status(429), false},
		{storagedriver.Error{DriverName: "s3aws", Detail: status(403)}, true},
		{fmt.Errorf("flush: upload part: %w", status(404)), true},
		{awserr.New("NoCredentialProviders", "none", nil), true},
		{awserr.New("RequestError", "send request failed", errors.New("connection refused")), false},
		{&azcore.ResponseError{StatusCode: 403}, true},
		{&azcore.ResponseError{StatusCode: 500}, false},
		{&googleapi.Error{Code: 404}, true},
		{&googleapi.Error{Code: 503}, false},
		{context.DeadlineExceeded, false},
		{errors.New("some text"), false},
	} {
		if got := refused(c.err); got != c.want {
			t.Errorf("%v: refused %v", c.err, got)
		}
	}
}

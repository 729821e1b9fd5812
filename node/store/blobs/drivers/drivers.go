package drivers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/aws/aws-sdk-go/aws/awserr"
	"github.com/aws/aws-sdk-go/aws/credentials"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/azure" // registers itself, as the next two
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/gcs"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"
	"google.golang.org/api/googleapi"

	"github.com/portolan/portolan/node/store/blobs"
)

// kind is one driver and what has to be known of it beyond its interface.
type kind struct {
	bucket    string   // the parameter that names the bucket
	known     []string // all parameters
	secret    []string // those of them that nobody may see
	numbers   []string // those that the driver takes as numbers or truth values only
	part      int64    // bytes sent in one request, if not told otherwise
	parts     int64    // most parts of an object; 0: any number
	sized     bool     // parameter chunksize sets part
	resumable bool     // see blobs.Backend
}

// kinds are the drivers. Drivers ignore parameters that they do not know, so that
// a typing mistake would go unnoticed: hence the lists, of v3.1.2.
var kinds = map[string]kind{
	"s3": {
		bucket: "bucket", part: 10 << 20, parts: 10_000, sized: true, resumable: true,
		known: []string{"accesskey", "secretkey", "region", "regionendpoint", "forcepathstyle", "bucket", "encrypt", "keyid",
			"secure", "skipverify", "v4auth", "chunksize", "rootdirectory", "storageclass", "useragent", "objectacl",
			"usedualstack", "accelerate", "usefipsendpoint", "loglevel", "redirectendpoint"},
		secret: []string{"accesskey", "secretkey"},
	},
	"gcs": {
		bucket: "bucket", part: 16 << 20, sized: true,
		known: []string{"bucket", "keyfile", "rootdirectory", "chunksize", "useragent", "maxconcurrency"},
	},
	"azure": {
		bucket: "container", part: 4 << 20, parts: 50_000,
		known: []string{"accountname", "accountkey", "container", "connectionstring", "realm", "rootdirectory", "serviceurl",
			"max_retries", "retry_delay", "skipverify",
			"credentials.type", "credentials.clientid", "credentials.tenantid", "credentials.secret"},
		secret:  []string{"accountkey", "connectionstring", "credentials.secret"},
		numbers: []string{"max_retries", "skipverify"},
	},
}

// Names lists the drivers.
func Names() []string { return slices.Sorted(maps.Keys(kinds)) }

// New makes the driver of that name. It asks the bucket nothing: the first use
// does. Its errors are one sentence each and show no secret.
func New(ctx context.Context, name string, parameters map[string]string) (*blobs.Backend, error) {
	k, ok := kinds[name]
	if !ok {
		return nil, fmt.Errorf("there is no storage driver %q: use one of %s", name, strings.Join(Names(), ", "))
	}
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		if !slices.Contains(k.known, key) {
			return nil, fmt.Errorf("storage driver %s has no parameter %q: it knows %s", name, key, strings.Join(k.known, ", "))
		}
	}
	bucket := parameters[k.bucket]
	if bucket == "" {
		return nil, fmt.Errorf("storage driver %s needs the parameter %q", name, k.bucket)
	}
	b := &blobs.Backend{Part: k.part, Resumable: k.resumable, Redirects: true, Refused: refused}
	for _, key := range k.secret {
		if v := parameters[key]; v != "" {
			b.Secrets = append(b.Secrets, v)
		}
	}
	if v := parameters["chunksize"]; v != "" && k.sized {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("storage driver %s: chunksize %q is not a number of bytes", name, v)
		}
		b.Part = n
	}
	b.MaxObject = b.Part * k.parts
	root := strings.Trim(parameters["rootdirectory"], "/")
	account := parameters["accountname"] // of Azure: containers are named within one
	b.Place = strings.TrimSpace(name + " " + strings.Join(slices.DeleteFunc([]string{account, bucket, root}, func(s string) bool { return s == "" }), "/"))
	b.Name = fmt.Sprintf("%s bucket %q", strings.ToUpper(name), bucket)
	if name == "azure" {
		b.Name = fmt.Sprintf("Azure container %q", bucket)
	}
	var err error
	if b.Driver, err = factory.Create(ctx, name, typed(k, parameters)); err != nil {
		return nil, fmt.Errorf("storage driver %s: %s", name, b.Conceal(err.Error()))
	}
	return b, nil
}

// typed gives parameters the types that drivers expect, and dotted keys a map.
func typed(k kind, parameters map[string]string) map[string]any {
	out := make(map[string]any)
	for key, text := range parameters {
		var v any = text
		if slices.Contains(k.numbers, key) {
			if n, err := strconv.Atoi(text); err == nil {
				v = n
			} else if b, err := strconv.ParseBool(text); err == nil {
				v = b
			}
		}
		if outer, inner, ok := strings.Cut(key, "."); ok {
			m, _ := out[outer].(map[string]any)
			if m == nil {
				m = make(map[string]any)
				out[outer] = m
			}
			m[inner] = v
			continue
		}
		out[key] = v
	}
	return out
}

// refused says whether the bucket answered, and answered no. What asks for
// another attempt (429, 5xx) and what did not come to an answer is not a no.
func refused(err error) bool {
	// The drivers' own error does not unwrap.
	var outer storagedriver.Error
	if errors.As(err, &outer) && outer.Detail != nil {
		err = outer.Detail
	}
	status := 0
	var (
		aws    awserr.RequestFailure
		azure  *azcore.ResponseError
		google *googleapi.Error
		noKeys awserr.Error
	)
	switch {
	case errors.As(err, &aws):
		status = aws.StatusCode()
	case errors.As(err, &azure):
		status = azure.StatusCode
	case errors.As(err, &google):
		status = google.Code
	case errors.As(err, &noKeys):
		return noKeys.Code() == credentials.ErrNoValidProvidersFoundInChain.Code()
	}
	return status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout
}

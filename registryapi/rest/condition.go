package rest

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/portolan/portolan/consensus/command"
)

// Every object of the control plane has a version, which goes up by one with
// each edit. Answers with one object carry it as ETag, "ID-VERSION" in quotes:
// with the id, because a name may come to belong to another object. An edit may
// name the version that its author saw, as If-Match or as resource_version in
// its body. The replicated state compares it in the very step that would make
// the edit, so of two authors who saw the same version one loses, whichever
// nodes they asked.
//
// If-Match that does not hold is 412, as HTTP says; a version in the body is
// Harbor's and Kubernetes' way, which answers 409.

// Tag writes an object's ETag.
func Tag(id int64, version uint64) string { return fmt.Sprintf(`"%d-%d"`, id, version) }

// Object is the answer of operations that read one object.
type Object[T any] struct {
	ETag string `header:"ETag" doc:"The object's version, for If-Match"`
	Body T
}

// ObjectOf wraps an object in its version.
func ObjectOf[T any](id int64, version uint64, body T) *Object[T] {
	return &Object[T]{ETag: Tag(id, version), Body: body}
}

// Condition is the part of an edit's input that says which version its author
// saw. Embed it.
type Condition struct {
	IfMatch string `header:"If-Match" maxLength:"1024" doc:"Make the edit only if the object still has this ETag, else answer 412; *: if it is there"`
}

// Expect is what an edit waits to find. Its zero value is anything.
type Expect struct {
	// Version that the state must have; 0: any.
	Version uint64
	body    bool // it was named in the body
}

// Expect gives what an edit of the object waits to find; inBody is the version
// in its body, 0 if there is none.
func (c Condition) Expect(id int64, inBody uint64) (Expect, error) {
	var e Expect
	switch match := strings.TrimSpace(c.IfMatch); match {
	case "":
		return Expect{Version: inBody, body: true}, nil
	case "*": // it is there, or nobody would have come so far
	default:
		var err error
		if e.Version, err = matched(match, id); err != nil {
			return e, err
		}
	}
	if inBody != 0 && e.Version != 0 && inBody != e.Version {
		return e, Invalid("If-Match says version %d and resource_version %d: name one", e.Version, inBody)
	}
	if e.Version == 0 {
		e.Version = inBody
	}
	return e, nil
}

// matched finds the version of an object in a list of ETags. Of several the
// latest is meant: versions only go up, and the earlier ones are gone.
func matched(list string, id int64) (uint64, error) {
	var version uint64
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if strings.HasPrefix(part, "W/") {
			return 0, Invalid("If-Match: %s is a weak tag, which never matches: send the ETag as it was answered", part)
		}
		if len(part) < 2 || part[0] != '"' || part[len(part)-1] != '"' {
			return 0, Invalid("If-Match: %q is not an ETag: send it as it was answered, quotes included", part)
		}
		of, v, _ := strings.Cut(part[1:len(part)-1], "-")
		n, err := strconv.ParseUint(v, 10, 64)
		if err == nil && of == strconv.FormatInt(id, 10) {
			version = max(version, n)
		}
	}
	if version == 0 {
		return 0, Precondition("the object was changed meanwhile: its ETag is none of those in If-Match; look again and repeat")
	}
	return version, nil
}

// Lost turns the state's word that the version is another into the answer that
// belongs to how it was named.
func (e Expect) Lost(err error) error {
	var refused *command.Error
	if !e.body || e.Version == 0 || !errors.As(err, &refused) || refused.Code != command.CodeConflict {
		return err
	}
	return fail(http.StatusConflict, "%s", refused.Message)
}

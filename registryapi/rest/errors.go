package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store/catalog"
)

// Codes are Harbor's; UNAVAILABLE is ours: Harbor has no word for a mesh
// without a majority.
const (
	CodeBadRequest    = "BAD_REQUEST"
	CodeUnauthorized  = "UNAUTHORIZED"
	CodeForbidden     = "FORBIDDEN"
	CodeNotFound      = "NOT_FOUND"
	CodeConflict      = "CONFLICT"
	CodePrecondition  = "PRECONDITION"
	CodeUnprocessable = "UNPROCESSABLE_ENTITY"
	CodeTooMany       = "TOO_MANY_REQUEST"
	CodeUnavailable   = "UNAVAILABLE"
	CodeUnknown       = "UNKNOWN"
)

// statusCodes names the code of statuses that huma or net/http chose.
var statusCodes = map[int]string{
	http.StatusBadRequest:            CodeBadRequest,
	http.StatusUnauthorized:          CodeUnauthorized,
	http.StatusForbidden:             CodeForbidden,
	http.StatusNotFound:              CodeNotFound,
	http.StatusMethodNotAllowed:      "METHOD_NOT_ALLOWED",
	http.StatusRequestTimeout:        "REQUEST_TIMEOUT",
	http.StatusConflict:              CodeConflict,
	http.StatusPreconditionFailed:    CodePrecondition,
	http.StatusRequestEntityTooLarge: "REQUEST_ENTITY_TOO_LARGE",
	http.StatusUnsupportedMediaType:  "UNSUPPORTED_MEDIA_TYPE",
	http.StatusUnprocessableEntity:   CodeUnprocessable,
	http.StatusTooManyRequests:       CodeTooMany,
	http.StatusServiceUnavailable:    CodeUnavailable,
}

// Error is an answer other than the one that was asked for.
type Error struct {
	Status  int
	Code    string
	Message string
	// Sites are those that cannot be reached, if that is the reason.
	Sites []string
	// Indeterminate: the edit may have been made all the same.
	Indeterminate bool
	// RetryAfter says when it is worth trying again; 0: not said.
	RetryAfter time.Duration
	// Fields are answered in Message's place, one for each field that is wrong.
	Fields []Failure
}

// Failure is the error body's entry, for the OpenAPI description and clients.
type Failure struct {
	Code    string   `json:"code" doc:"Stable name of the failure" example:"NOT_FOUND"`
	Message string   `json:"message" doc:"One sentence for people: what happened, to what, what to do"`
	Sites   []string `json:"sites,omitempty" doc:"Sites that cannot be reached, where that is the reason"`
	// Field names what of the request's body it is about.
	Field string `json:"field,omitempty" doc:"The field of the request that is wrong"`
	// Indeterminate says what a program must know before it repeats an edit.
	Indeterminate bool `json:"indeterminate,omitempty" doc:"Whether the edit was made is not known: look before you repeat it"`
}

// Failures is the body of every error answer.
type Failures struct {
	Errors []Failure `json:"errors"`
}

func (e *Error) Error() string { return e.Message }

// GetStatus implements huma.StatusError.
func (e *Error) GetStatus() int { return e.Status }

// GetHeaders implements huma.HeadersError.
func (e *Error) GetHeaders() http.Header {
	h := http.Header{}
	if e.RetryAfter > 0 {
		// Rounded up: nobody shall come too early.
		h.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	if e.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Basic realm="portolan"`)
	}
	return h
}

// MarshalJSON gives Harbor's form.
func (e *Error) MarshalJSON() ([]byte, error) {
	if len(e.Fields) > 0 {
		return json.Marshal(Failures{Errors: e.Fields})
	}
	return json.Marshal(Failures{Errors: []Failure{{Code: e.Code, Message: e.Message, Sites: e.Sites, Indeterminate: e.Indeterminate}}})
}

func fail(status int, format string, args ...any) *Error {
	code, ok := statusCodes[status]
	if !ok {
		code = CodeUnknown
	}
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// NotFound answers that what was asked for is not there, or not for who asks.
func NotFound(format string, args ...any) *Error { return fail(http.StatusNotFound, format, args...) }

// Forbidden answers that who asks may not do it.
func Forbidden(format string, args ...any) *Error { return fail(http.StatusForbidden, format, args...) }

// Unauthorized answers that nobody is logged in, where somebody must be.
func Unauthorized(format string, args ...any) *Error {
	return fail(http.StatusUnauthorized, format, args...)
}

// Invalid answers that the request makes no sense.
func Invalid(format string, args ...any) *Error { return fail(http.StatusBadRequest, format, args...) }

// InvalidFields answers what is wrong with fields of the request, all at once.
func InvalidFields(wrong []Failure) *Error {
	e := fail(http.StatusBadRequest, "")
	messages := make([]string, len(wrong))
	for i := range wrong {
		wrong[i].Code = e.Code
		messages[i] = wrong[i].Message
	}
	e.Message, e.Fields = strings.Join(messages, "; "), wrong
	return e
}

// Conflict answers that something else is in the way.
func Conflict(format string, args ...any) *Error { return fail(http.StatusConflict, format, args...) }

// Precondition answers that something must be done first.
func Precondition(format string, args ...any) *Error {
	return fail(http.StatusPreconditionFailed, format, args...)
}

// FromError gives the answer for err. ok is false if nobody foresaw it: then
// the answer says nothing of it, and the caller logs it.
func FromError(err error) (answer *Error, ok bool) {
	var mine *Error
	if errors.As(err, &mine) {
		return mine, true
	}
	var refused *command.Error
	if errors.As(err, &refused) {
		return &Error{Status: refusedStatus(refused.Code), Code: refusedCode(refused.Code), Message: refused.Message}, true
	}
	var away *command.Unavailable
	if errors.As(err, &away) {
		retry := away.RetryAfter
		if retry <= 0 {
			retry = time.Second
		}
		return &Error{Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: away.Error(), Sites: away.Sites, Indeterminate: away.Indeterminate, RetryAfter: retry}, true
	}
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return NotFound("it is not in the catalogue of this site any more: ask again for what there is"), true
	case errors.Is(err, catalog.ErrTooLarge):
		return fail(http.StatusRequestEntityTooLarge, "this touches more entries than one request can: do it in several steps, tags and manifests first"), true
	case errors.Is(err, catalog.ErrInvalid):
		return Invalid("a name in the request is not possible in a registry: check its spelling"), true
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &Error{Status: http.StatusInsufficientStorage, Code: CodeUnavailable, Message: "this site has no space left: free some there, or use another site"}, true
	case errors.Is(err, context.Canceled):
		return &Error{Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: "the node is stopping, or the request was given up; ask again", RetryAfter: time.Second}, true
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: "no answer in time; ask again", RetryAfter: time.Second}, true
	}
	return &Error{Status: http.StatusInternalServerError, Code: CodeUnknown, Message: "internal server error; the node's log says more"}, false
}

func refusedStatus(c command.Code) int {
	switch c {
	case command.CodeNotFound:
		return http.StatusNotFound
	case command.CodeExists, command.CodeUsed:
		return http.StatusConflict
	case command.CodeConflict:
		return http.StatusPreconditionFailed
	case command.CodeDenied:
		return http.StatusForbidden
	case command.CodeInvalid, command.CodeExpired:
		return http.StatusBadRequest
	default:
		return http.StatusInternalServerError
	}
}

func refusedCode(c command.Code) string {
	if code, ok := statusCodes[refusedStatus(c)]; ok {
		return code
	}
	return CodeUnknown
}

// fromHuma turns what huma found wrong with the input into our form.
func fromHuma(m *huma.ErrorModel) *Error {
	details := make([]string, 0, len(m.Errors))
	for _, d := range m.Errors {
		if d == nil {
			continue
		}
		if d.Location == "" {
			details = append(details, d.Message)
		} else {
			details = append(details, d.Location+": "+d.Message)
		}
	}
	text := m.Detail
	if len(details) > 0 {
		text += ": " + strings.Join(details, "; ")
	}
	return fail(m.Status, "%s", text)
}

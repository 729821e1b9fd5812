package rest

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// MaxPageSize is Harbor's: clients count on it, and it bounds an answer.
const MaxPageSize = 100

// Page is the part of a list's input that says which part of it is wanted.
// Embed it.
type Page struct {
	Page     int    `query:"page" default:"1" minimum:"1" maximum:"1000000" doc:"Which page, from 1"`
	PageSize int    `query:"page_size" default:"10" minimum:"1" maximum:"100" doc:"Entries per page"`
	Q        string `query:"q" maxLength:"1024" doc:"Filter: k=v exact, k=~v contains; several joined by commas"`

	url url.URL
}

// Resolve keeps the request's address, from which the Link header is made.
func (p *Page) Resolve(ctx huma.Context) []error {
	p.url = ctx.URL()
	return nil
}

// Start and End are the wanted part as indexes.
func (p *Page) Start() int { return (p.Page - 1) * p.PageSize }
func (p *Page) End() int   { return p.Page * p.PageSize }

// List is the answer of every listing operation.
type List[T any] struct {
	Total int    `header:"X-Total-Count" doc:"Entries in all, over all pages"`
	Link  string `header:"Link" doc:"Previous and next page, RFC 8288"`
	Body  []T
}

// PageOf cuts the wanted page out of all entries.
func PageOf[T any](p *Page, all []T) *List[T] {
	start, end := min(p.Start(), len(all)), min(p.End(), len(all))
	return ListOf(p, all[start:end], len(all))
}

// ListOf wraps a page that was cut already, out of total entries.
func ListOf[T any](p *Page, page []T, total int) *List[T] {
	if page == nil {
		page = []T{} // a list is [] in JSON, never null
	}
	var links []string
	link := func(n int, rel string) {
		// One slash: what begins with two names another host.
		path := "/" + strings.TrimLeft(p.url.EscapedPath(), "/")
		q := p.url.Query()
		q.Set("page", strconv.Itoa(n))
		q.Set("page_size", strconv.Itoa(p.PageSize))
		links = append(links, fmt.Sprintf("<%s?%s>; rel=%q", path, q.Encode(), rel))
	}
	if p.Page > 1 {
		link(p.Page-1, "prev")
	}
	if p.End() < total {
		link(p.Page+1, "next")
	}
	return &List[T]{Total: total, Link: strings.Join(links, " , "), Body: page}
}

// Filter is a parsed q: for each key, what its value must satisfy.
type Filter map[string]Match

// Match is one condition.
type Match struct {
	Value string
	Fuzzy bool
}

// ParseFilter reads Harbor's q in the forms k=v and k=~v. known lists the keys
// that the operation can filter by: another one is refused, because ignoring it
// would answer with more than was asked for.
func ParseFilter(q string, known ...string) (Filter, error) {
	f := Filter{}
	for _, part := range strings.Split(q, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok || k == "" {
			return nil, Invalid("q: %q is not of the form key=value or key=~value", part)
		}
		found := false
		for _, name := range known {
			found = found || name == k
		}
		if !found {
			return nil, Invalid("q: cannot filter by %q, only by %s", k, strings.Join(known, ", "))
		}
		fuzzy := strings.HasPrefix(v, "~")
		v = strings.TrimPrefix(v, "~")
		if strings.ContainsAny(v, "[]{}()") {
			return nil, Invalid("q: ranges and lists are not supported, only %s=value and %s=~value", k, k)
		}
		f[k] = Match{Value: v, Fuzzy: fuzzy}
	}
	return f, nil
}

// OK reports whether value satisfies the condition on key, if there is one.
func (f Filter) OK(key, value string) bool {
	m, ok := f[key]
	if !ok {
		return true
	}
	if m.Fuzzy {
		return Contains(value, m.Value)
	}
	return value == m.Value
}

// Created is the answer of operations that make something.
type Created[T any] struct {
	Status   int
	Location string `header:"Location" doc:"Where the new object is"`
	Body     T
}

// Made gives 201 and where the object is.
func Made[T any](location string, body T) *Created[T] {
	return &Created[T]{Status: http.StatusCreated, Location: location, Body: body}
}

// CreatedEmpty is Created for operations whose answer, as Harbor's, has no body.
type CreatedEmpty struct {
	Status   int
	Location string `header:"Location" doc:"Where the new object is"`
}

// Empty is the answer of operations that have nothing to say but that it is so.
type Empty struct{}

// Contains is how names are searched: any part of them, whatever the case.
func Contains(name, part string) bool {
	return strings.Contains(strings.ToLower(name), strings.ToLower(part))
}

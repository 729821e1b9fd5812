package rest

import (
	"errors"
	"net/http"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

func TestCondition_Expect(t *testing.T) {
	for _, c := range []struct {
		match  string
		body   uint64
		want   uint64
		status int
	}{
		{"", 0, 0, 0},
		{"", 7, 7, 0},
		{"*", 0, 0, 0},
		{"*", 7, 7, 0},
		{`"12-3"`, 0, 3, 0},
		{`"12-3"`, 3, 3, 0},
		{`"12-3"`, 4, 0, 400},
		{` "12-3" , "12-5", "13-9" `, 0, 5, 0},
		{`"13-3"`, 0, 0, 412}, // another object of that name
		{`"12-x"`, 0, 0, 412},
		{`"12"`, 0, 0, 412},
		{`""`, 0, 0, 412},
		{`W/"12-3"`, 0, 0, 400},
		{`12-3`, 0, 0, 400},
		{`"`, 0, 0, 400},
		{`12-3"`, 0, 0, 400},
		{`"12-3`, 0, 0, 400},
	} {
		e, err := Condition{IfMatch: c.match}.Expect(12, c.body)
		var answer *Error
		status := 0
		if errors.As(err, &answer) {
			status = answer.Status
		}
		if status != c.status || (c.status == 0 && e.Version != c.want) {
			t.Errorf("%q and %d: version %d, %v; want %d, %d", c.match, c.body, e.Version, err, c.want, c.status)
		}
	}
	if got := Tag(12, 3); got != `"12-3"` {
		t.Error(got)
	}
}

func TestExpect_Lost(t *testing.T) {
	changed := &command.Error{Code: command.CodeConflict, Message: "m"}
	for _, c := range []struct {
		match  string
		body   uint64
		err    error
		status int
	}{
		{`"1-1"`, 0, changed, http.StatusPreconditionFailed},
		{"", 1, changed, http.StatusConflict},
		{"", 0, changed, http.StatusPreconditionFailed}, // not about a version
		{"", 1, &command.Error{Code: command.CodeNotFound}, http.StatusNotFound},
	} {
		e, err := Condition{IfMatch: c.match}.Expect(1, c.body)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := FromError(e.Lost(c.err)); got.Status != c.status {
			t.Errorf("%+v: %d", c, got.Status)
		}
	}
	if err := (Expect{Version: 1}).Lost(nil); err != nil {
		t.Error(err)
	}
}

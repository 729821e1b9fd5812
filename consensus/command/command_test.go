package command

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestKinds_EveryTypeHasAMessage: a type that was added to the enum and not to
// the list would stop every node that meets it.
func TestKinds_EveryTypeHasAMessage(t *testing.T) {
	for n, name := range Type_name {
		if Type(n) == Type_TYPE_UNSPECIFIED {
			continue
		}
		if !Known(Type(n)) {
			t.Errorf("%s is not in the list of kinds", name)
		}
	}
	if len(kinds) != len(Type_name)-1 {
		t.Errorf("%d kinds for %d types", len(kinds), len(Type_name)-1)
	}
	for _, k := range kinds {
		if k.level == 0 || k.level > Level {
			t.Errorf("%s needs level %d; this binary knows %d", k.typ, k.level, Level)
		}
	}
}

func TestNew_RoundTrip(t *testing.T) {
	now := time.Unix(5, 7)
	want := &ProjectCreate{Name: "prod", ProjectId: []byte("0123456789abcdef")}
	env, err := New("user:ann", now, want)
	if err != nil {
		t.Fatal(err)
	}
	other, err := New("user:ann", now, want)
	if err != nil {
		t.Fatal(err)
	}
	if env.Type != Type_TYPE_PROJECT_CREATE || env.MinLevel != 1 || len(env.RequestId) != 16 || env.ProposedUnixNs != now.UnixNano() || bytes.Equal(env.RequestId, other.RequestId) {
		t.Errorf("%v", env)
	}
	got, err := env.Open()
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNew_Refusals(t *testing.T) {
	if _, err := New("x", time.Now(), &emptypb.Empty{}); err == nil || !strings.Contains(err.Error(), "not a command") {
		t.Error(err)
	}
	if _, err := New("x", time.Now(), nil); err == nil {
		t.Error("no body")
	}
	var none *SetLevel
	if _, err := New("x", time.Now(), none); err == nil {
		t.Error("nil body")
	}
	if _, err := New("x", time.Now(), &UserCreate{Comment: strings.Repeat("a", MaxBytes)}); !errors.Is(err, &Error{Code: CodeInvalid}) {
		t.Error(err)
	}
	if _, err := New("x", time.Now(), &UserCreate{Comment: "\xff"}); !errors.Is(err, &Error{Code: CodeInvalid}) {
		t.Error(err)
	}
	if err := Check(&Envelope{}); !errors.Is(err, &Error{Code: CodeInvalid}) {
		t.Error(err)
	}
	if _, err := (&Envelope{Type: 999}).Open(); err == nil {
		t.Error("unknown type opened")
	}
}

func TestUnavailable_SaysWhatHappened(t *testing.T) {
	u := &Unavailable{Reason: "no majority", Sites: []string{"fra", "sgp"}}
	if s := u.Error(); !strings.Contains(s, "cannot reach fra, sgp") || !strings.Contains(s, "nothing was changed") {
		t.Error(s)
	}
	u.Indeterminate = true
	if s := u.Error(); strings.Contains(s, "nothing was changed") {
		t.Error(s)
	}
}

// FuzzEnvelope: bytes that a node or a log brings are refused, or are a command
// that means the same wherever it is read, and that can be written again.
func FuzzEnvelope(f *testing.F) {
	for _, body := range []proto.Message{&UserCreate{Name: "x", PasswordHash: "y"}, &SetLevel{Level: 1}, &RuleCreate{Rule: &Rule{Name: "r", AllSites: true}},
		&NodeRemove{NodeId: make([]byte, 32), IfVersion: 1}, &TokenRevoke{Id: 7}} {
		env, err := New("user:ann", time.Unix(1, 0), body)
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(env)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Envelope
		if proto.Unmarshal(b, &e) != nil || Check(&e) != nil {
			return
		}
		body, err := e.Open()
		if err != nil {
			return
		}
		again, err := proto.Marshal(&e)
		if err != nil {
			t.Fatal(err)
		}
		var back Envelope
		if err := proto.Unmarshal(again, &back); err != nil || Check(&back) != nil {
			t.Fatalf("what was read cannot be read again: %v, %v", err, Check(&back))
		}
		twin, err := back.Open()
		if err != nil || !proto.Equal(body, twin) || !proto.Equal(&e, &back) {
			t.Fatalf("%v and %v, %v", body, twin, err)
		}
	})
}

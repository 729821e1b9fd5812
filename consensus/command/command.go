package command

import (
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
)

const (
	// MaxBytes bounds an envelope: raft sends some of them in one request,
	// and everyone keeps thousands in memory.
	MaxBytes = 64 << 10

	// Ignorable marks types that a node which does not know them may skip.
	Ignorable = uint32(1) << 31

	requestIDBytes = 16
)

// Body is a command's message, one of those that Type names.
type Body interface{ proto.Message }

// kind ties a type to its message and to the level that it needs.
type kind struct {
	typ   Type
	level uint32
	make  func() proto.Message
}

// kinds is the one list of all commands. Append only.
var kinds = []kind{
	{Type_TYPE_MESH_CREATE, 1, func() proto.Message { return new(MeshCreate) }},
	{Type_TYPE_SET_LEVEL, 1, func() proto.Message { return new(SetLevel) }},
	{Type_TYPE_TOKEN_CREATE, 1, func() proto.Message { return new(TokenCreate) }},
	{Type_TYPE_TOKEN_DELETE, 1, func() proto.Message { return new(TokenDelete) }},
	{Type_TYPE_NODE_JOIN, 1, func() proto.Message { return new(NodeJoin) }},
	{Type_TYPE_NODE_UPDATE, 1, func() proto.Message { return new(NodeUpdate) }},
	{Type_TYPE_PROJECT_CREATE, 1, func() proto.Message { return new(ProjectCreate) }},
	{Type_TYPE_PROJECT_UPDATE, 1, func() proto.Message { return new(ProjectUpdate) }},
	{Type_TYPE_PROJECT_DELETE, 1, func() proto.Message { return new(ProjectDelete) }},
	{Type_TYPE_USER_CREATE, 1, func() proto.Message { return new(UserCreate) }},
	{Type_TYPE_USER_UPDATE, 1, func() proto.Message { return new(UserUpdate) }},
	{Type_TYPE_USER_DELETE, 1, func() proto.Message { return new(UserDelete) }},
	{Type_TYPE_MEMBER_SET, 1, func() proto.Message { return new(MemberSet) }},
	{Type_TYPE_MEMBER_DELETE, 1, func() proto.Message { return new(MemberDelete) }},
	{Type_TYPE_RULE_CREATE, 1, func() proto.Message { return new(RuleCreate) }},
	{Type_TYPE_RULE_UPDATE, 1, func() proto.Message { return new(RuleUpdate) }},
	{Type_TYPE_RULE_DELETE, 1, func() proto.Message { return new(RuleDelete) }},
	{Type_TYPE_PROFILE_SET, 1, func() proto.Message { return new(ProfileSet) }},
	{Type_TYPE_TOKEN_REVOKE, 1, func() proto.Message { return new(TokenRevoke) }},
	{Type_TYPE_NODE_REMOVE, 1, func() proto.Message { return new(NodeRemove) }},
	{Type_TYPE_SITE_DRAIN, 1, func() proto.Message { return new(SiteDrain) }},
	{Type_TYPE_SITE_REMOVE, 1, func() proto.Message { return new(SiteRemove) }},
	{Type_TYPE_VOTERS_SET, 1, func() proto.Message { return new(VotersSet) }},
	{Type_TYPE_MESH_RECOVERED, 1, func() proto.Message { return new(MeshRecovered) }},
	{Type_TYPE_KEYS_ROTATE, 1, func() proto.Message { return new(KeysRotate) }},
	{Type_TYPE_KEY_STEP, 1, func() proto.Message { return new(KeyStep) }},
	{Type_TYPE_SECRET_SET, 1, func() proto.Message { return new(SecretSet) }},
	{Type_TYPE_RECOVERY_SET, 1, func() proto.Message { return new(RecoverySet) }},
	{Type_TYPE_SITE_LABEL, 1, func() proto.Message { return new(SiteLabel) }},
	{Type_TYPE_SITE_AWAY, 1, func() proto.Message { return new(SiteAway) }},
	{Type_TYPE_BUDGET_SET, 1, func() proto.Message { return new(BudgetSet) }},
	{Type_TYPE_SITE_PAUSE, 1, func() proto.Message { return new(SitePause) }},
	{Type_TYPE_ARTIFACT_HOLD, 1, func() proto.Message { return new(ArtifactHold) }},
	{Type_TYPE_RULE_PAUSE, 1, func() proto.Message { return new(RulePause) }},
	{Type_TYPE_PROJECT_SITES, 1, func() proto.Message { return new(ProjectSites) }},
	{Type_TYPE_PROJECT_SITE_DONE, 1, func() proto.Message { return new(ProjectSiteDone) }},
	{Type_TYPE_TAGS_SET, 1, func() proto.Message { return new(TagsSet) }},
	{Type_TYPE_TAGS_DELETE, 1, func() proto.Message { return new(TagsDelete) }},
	{Type_TYPE_TAGS_MODE, 1, func() proto.Message { return new(TagsMode) }},
	{Type_TYPE_PROJECT_RESTORE, 1, func() proto.Message { return new(ProjectRestore) }},
	{Type_TYPE_PROJECT_PURGE, 1, func() proto.Message { return new(ProjectPurge) }},
	{Type_TYPE_SITE_LEAVE, 1, func() proto.Message { return new(SiteLeave) }},
}

// index finds kinds by type and by message name. Made at first use: generated
// messages are not ready while package variables are initialised.
var index = sync.OnceValues(func() (map[Type]kind, map[string]kind) {
	t, n := make(map[Type]kind, len(kinds)), make(map[string]kind, len(kinds))
	for _, k := range kinds {
		t[k.typ] = k
		n[string(k.make().ProtoReflect().Descriptor().FullName())] = k
	}
	return t, n
})

func byType(t Type) (kind, bool) { m, _ := index(); k, ok := m[t]; return k, ok }

func byName(name string) (kind, bool) { _, m := index(); k, ok := m[name]; return k, ok }

// New wraps body for proposing: it fills in the type, the level it needs and a
// fresh request id. actor is "user:NAME", "node:ID" or "system".
func New(actor string, now time.Time, body proto.Message) (*Envelope, error) {
	if body == nil || !body.ProtoReflect().IsValid() {
		return nil, fmt.Errorf("command: no body")
	}
	name := string(body.ProtoReflect().Descriptor().FullName())
	k, ok := byName(name)
	if !ok {
		return nil, fmt.Errorf("command: %s is not a command", name)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Message: fmt.Sprintf("%s cannot be encoded: %v", name, err)}
	}
	id := uuid.New()
	env := &Envelope{Type: k.typ, MinLevel: k.level, RequestId: id[:], ProposedUnixNs: now.UnixNano(), Actor: actor, Body: b}
	return env, Check(env)
}

// Check refuses what no state machine would take: too large, or without the id
// that makes a retry harmless.
func Check(env *Envelope) error {
	if n := proto.Size(env); n > MaxBytes {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("the edit is %d bytes long; at most %d are possible: split it", n, MaxBytes)}
	}
	if len(env.GetRequestId()) != requestIDBytes {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("a request id has %d bytes, not %d", requestIDBytes, len(env.GetRequestId()))}
	}
	return nil
}

// Known reports whether this binary can apply commands of the type.
func Known(t Type) bool { _, ok := byType(t); return ok }

// CanIgnore reports whether a node that does not know the type may skip it.
func CanIgnore(t Type) bool { return uint32(t)&Ignorable != 0 }

// Open gives the message of the envelope's type.
func (e *Envelope) Open() (proto.Message, error) {
	k, ok := byType(e.GetType())
	if !ok {
		return nil, fmt.Errorf("command: type %d is unknown to this version", uint32(e.GetType()))
	}
	m := k.make()
	if err := proto.Unmarshal(e.GetBody(), m); err != nil {
		return nil, fmt.Errorf("command: body of %s: %w", e.GetType(), err)
	}
	return m, nil
}

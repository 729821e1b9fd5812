package consensus

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
)

func TestEachNodeTellsWhoAskedForARotation(t *testing.T) {
	body, err := proto.Marshal(&command.KeysRotate{Gossip: true})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	tell(slog.New(slog.NewTextHandler(&out, nil)), state.New().View(),
		&command.Envelope{Type: command.Type_TYPE_KEYS_ROTATE, Actor: "user:ada", Body: body})
	for _, want := range []string{"new keys were asked for", "by=user:ada", "gossip=true", "mesh=false"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the line %q lacks %q", out.String(), want)
		}
	}
}

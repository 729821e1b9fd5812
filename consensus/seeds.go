package consensus

import (
	"fmt"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
)

// KeepSeeds writes the members that a join named, the mesh's profile and its
// raft generation (nil: not known) into dir, the Config.Dir of the node to be opened: for a join whose node starts
// later. It is durable before it returns.
func KeepSeeds(dir, profile string, generation []byte, nodes []*command.Node) error {
	b, err := proto.Marshal(&Seeds{Nodes: nodes, Profile: profile, Generation: generation})
	if err != nil {
		return fmt.Errorf("consensus: keep seeds: %w", err)
	}
	if err := identity.MakeDir(dir); err != nil {
		return fmt.Errorf("consensus: keep seeds: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, seedsFile), b); err != nil {
		return fmt.Errorf("consensus: keep seeds: %w", err)
	}
	return nil
}

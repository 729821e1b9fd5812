package consensus

import (
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
)

// KeepSeeds writes the members that a join named into dir, the Config.Dir of
// the node to be opened: for a join whose node starts later. It is durable
// before it returns.
func KeepSeeds(dir string, nodes []*command.Node) error {
	b, err := proto.Marshal(&Seeds{Nodes: nodes})
	if err != nil {
		return fmt.Errorf("consensus: keep seeds: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("consensus: keep seeds: %w", err)
	}
	if err := writeFile(filepath.Join(dir, seedsFile), b); err != nil {
		return fmt.Errorf("consensus: keep seeds: %w", err)
	}
	return nil
}

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
)

// seedsName is the file in which a joiner keeps what the mesh answered: whom to
// let in and whom to seek until the control state itself has arrived.
const seedsName = "seeds.json"

// seeds is that file. Once the state is loaded only Joining still matters.
type seeds struct {
	Mesh       identity.MeshID   `json:"mesh"`
	GossipKeys [][]byte          `json:"gossip_keys"`
	Nodes      []json.RawMessage `json:"nodes"` // command.Node, in protobuf's JSON
	// Joining is true until the first exchange of the catalogue is done: a node
	// that was killed before is not ready after its restart either.
	Joining bool `json:"joining"`
}

func newSeeds(mesh identity.MeshID, keys [][]byte, nodes []*command.Node) (*seeds, error) {
	s := &seeds{Mesh: mesh, GossipKeys: keys, Joining: true}
	for _, n := range nodes {
		b, err := protojson.Marshal(n)
		if err != nil {
			return nil, err
		}
		s.Nodes = append(s.Nodes, b)
	}
	return s, nil
}

// readSeeds gives nil without an error for the node that made the mesh.
func readSeeds(dir string) (*seeds, error) {
	path := filepath.Join(dir, seedsName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s seeds
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or join anew with an empty directory", path, err)
	}
	return &s, nil
}

func (s *seeds) write(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return config.WriteFile(filepath.Join(dir, seedsName), b)
}

// nodes gives the records that can be read.
func (s *seeds) nodes() []*command.Node {
	if s == nil {
		return nil
	}
	var out []*command.Node
	for _, raw := range s.Nodes {
		var n command.Node
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &n); err == nil {
			out = append(out, &n)
		}
	}
	return out
}

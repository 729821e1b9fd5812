//go:build portolan_level2

package command

// Level is that of a next version. Nothing is built so but by test/upgrade, which
// runs it beside the real one: what raises the level is a tag of the compiler,
// nothing that can be set where a node runs.
const Level uint32 = 2

// The revocation of tokens stands for a command that came with level 2.
func init() {
	for i := range kinds {
		if kinds[i].typ == Type_TYPE_TOKEN_REVOKE {
			kinds[i].level = 2
		}
	}
}

package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip needs a key: it never runs in the clear")
	}
	for _, k := range keys {
		if len(k) != keyBytes {
			return fmt.Errorf("gossip key of %d bytes: expected %d", len(k), keyBytes)
		}
	}
	return nil
}

// SetKeys replaces the keys while gossip runs: the first encrypts from now on,
// all decrypt. Members that have none of them are not heard any more, and do not
// hear. One call at a time.
func (m *Mesh) SetKeys(keys [][]byte) error {
	if err := checkKeys(keys); err != nil {
		return err
	}
	// In this order, no packet comes for which there is no key: what is new is
	// known before it is used, what is old until then.
	for _, k := range keys {
		if err := m.ring.AddKey(k); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	// memberlist's RemoveKey shifts the keys within the slice that packets are
	// being decrypted with, unless it is the last that goes: those that stay are
	// brought to the front.
	for _, k := range slices.Backward(keys) {
		if err := m.ring.UseKey(k); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	for _, old := range slices.Backward(slices.Clone(m.ring.GetKeys())) {
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, old) }) {
			break
		}
		if err := m.ring.RemoveKey(old); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	return nil
}

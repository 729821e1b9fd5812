package identity

import (
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"
)

// The HPKE suite (RFC 9180, base mode) of boxes: DHKEM(X25519, HKDF-SHA256),
// HKDF-SHA256, AES-256-GCM. A box is the encapsulated key, 32 bytes, and the
// ciphertext with its tag of 16.
func boxSuite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.DHKEM(ecdh.X25519()), hpke.HKDFSHA256(), hpke.AES256GCM()
}

// SealBox encrypts value to a box key; only its owner can open it. info says
// what the value is and for whom: [Identity.OpenBox] wants the same. Check the key by
// [VerifyBoxKey] first. Who made a box is not proved.
func SealBox(boxKey [32]byte, info, value []byte) ([]byte, error) {
	kem, kdf, aead := boxSuite()
	pub, err := kem.NewPublicKey(boxKey[:])
	if err != nil {
		return nil, fmt.Errorf("identity: box key: %w", err)
	}
	box, err := hpke.Seal(pub, kdf, aead, info, value)
	if err != nil {
		return nil, fmt.Errorf("identity: seal a box: %w", err)
	}
	return box, nil
}

// OpenBox decrypts what [SealBox] made for this node with the same info.
func (id *Identity) OpenBox(info, box []byte) ([]byte, error) {
	kem, kdf, aead := boxSuite()
	key, err := kem.NewPrivateKey(id.box.Bytes())
	if err != nil {
		return nil, fmt.Errorf("identity: box key: %w", err)
	}
	value, err := hpke.Open(key, kdf, aead, info, box)
	if err != nil {
		return nil, fmt.Errorf("identity: this box is not for this node and purpose, or damaged: %w", err)
	}
	return value, nil
}

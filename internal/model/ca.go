package model

import "time"

// CARoot is a certificate authority of the site. Exactly one is active and signs;
// the others are trusted until they are pruned.
type CARoot struct {
	ID          string    `json:"id"` // fingerprint of the certificate: SHA-1 in hexadecimal, colons between
	Name        string    `json:"name"`
	Serial      uint64    `json:"serial"`
	TrustDomain string    `json:"trust_domain"` // "<uuid>.consul"
	RootCert    string    `json:"root_cert"`    // PEM
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Active      bool      `json:"active"`
	RotatedOut  time.Time `json:"rotated_out,omitzero"` // when it stopped being active
	// Intermediates are PEM certificates that go with every leaf of this root:
	// this root, signed by the one before it, for those who trust only that yet.
	Intermediates []string `json:"intermediates,omitempty"`
	Stamp
}

// CAKey is the private key of a root. Servers alone hold it: it is in no agent's
// feed and in no API's answer.
type CAKey struct {
	Root string `json:"root"` // CARoot.ID
	Key  string `json:"key"`  // PEM, PKCS #8
	Stamp
}

// Setting is one cluster-wide setting that an API can change, by name.
type Setting struct {
	Name  string `json:"name"`  // such as "autopilot" or "acl-bootstrap"
	Value string `json:"value"` // JSON
	Stamp
}

package model

import "time"

// SnapshotMeta says what an archived snapshot of the registry holds.
type SnapshotMeta struct {
	Version  int            `json:"version"`            // of the format
	Index    Index          `json:"index"`              // the revision that it shows
	Node     NodeName       `json:"node"`               // the server that wrote it
	Site     string         `json:"site,omitempty"`     // the site it is of
	Software string         `json:"software,omitempty"` // version of the program that wrote it
	Time     time.Time      `json:"time"`
	Tables   map[string]int `json:"tables"`  // records in each table
	Records  int            `json:"records"` // in all tables
	Bytes    int64          `json:"bytes"`   // of all keys and values, uncompressed
}

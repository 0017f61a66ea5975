// Package archive is the file format of the registry's snapshots: who writes one
// streams it, and who reads one knows at its end, and not before, that every bit
// of it is as it was written.
//
// An archive is a gzip-compressed tar with these entries, in this order:
//
//	fairlead-snapshot    the format's version and a newline
//	records/000001 ...   records in the order of their keys; each is the length
//	                     of the key as a uvarint, the key, the length of the
//	                     value, the value
//	meta.json            model.SnapshotMeta
//	SHA256SUMS           one line for each entry before it
//
// What it describes stands at the end, so that nothing has to be counted before
// it is written. The package knows nothing of what the records mean. Its
// functions hold no state; a Writer belongs to one goroutine.
package archive

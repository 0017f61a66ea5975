// Package prepared runs prepared queries.
package prepared

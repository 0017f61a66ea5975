// Package event keeps user events: what clients fired for others to hear, in memory.
package event

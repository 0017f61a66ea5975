// Package story holds the tests that run whole agents: real processes of the
// built binary on laboratory hosts, driven by the command line and by real
// clients. It has no code of its own that anything could import.
package story

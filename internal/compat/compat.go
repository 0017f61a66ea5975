// Package compat runs clients of Consul, libraries and programs, against an agent (tests only).
package compat

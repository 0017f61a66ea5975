// Package definition reads services and checks as users of Consul write them.
package definition

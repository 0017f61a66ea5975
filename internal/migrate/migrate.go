// Package migrate turns the configuration and the data of a Consul into ours.
package migrate

// Package identity is the site's certificate authority: roots, and short-lived leaves with SPIFFE names.
package identity

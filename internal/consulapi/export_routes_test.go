package consulapi

import (
	"maps"
	"slices"
)

// RouteMethods lists everything that is served as "METHOD path".
func RouteMethods() []string {
	var all []string
	for _, r := range routes {
		for _, m := range slices.Sorted(maps.Keys(r.methods)) {
			all = append(all, m+" "+r.path)
		}
	}
	return all
}

package main

import (
	"slices"
	"testing"
)

func TestWorkloadEnv(t *testing.T) {
	own := []string{"PATH=/bin", "FAIRLEAD_TOKEN=operator", "FAIRLEAD_ADDR=a"}
	if got, want := workloadEnv(slices.Clone(own), []string{"A=1"}), []string{"PATH=/bin", "FAIRLEAD_ADDR=a", "A=1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := workloadEnv(own, []string{"FAIRLEAD_TOKEN=its"}); !slices.Contains(got, "FAIRLEAD_TOKEN=its") || slices.Contains(got, "FAIRLEAD_TOKEN=operator") {
		t.Errorf("%q, want the token that was given for it", got)
	}
}

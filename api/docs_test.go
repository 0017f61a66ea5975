package api_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")

// What docs/sdk.md shows is part of an example, word for word, and so runs.
func TestDocumentIsMadeOfExamples(t *testing.T) {
	var examples strings.Builder
	for _, name := range []string{"example_test.go", "grpc/example_test.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		examples.Write(b)
	}
	page, err := os.ReadFile("../docs/sdk.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := goBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 10 {
		t.Fatalf("docs/sdk.md has %d blocks of Go", len(blocks))
	}
	for _, b := range blocks {
		var indented strings.Builder
		for line := range strings.Lines(b[1]) {
			if strings.TrimSpace(line) != "" {
				line = "\t" + line
			}
			indented.WriteString(line)
		}
		if !strings.Contains(examples.String(), indented.String()) {
			t.Errorf("no example has\n%s", b[1])
		}
	}
}

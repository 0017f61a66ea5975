# Fairlead is built and tested with these targets. `make test`, `make check` and `make demo` install what is missing first
# (scripts/setup.sh); tests and demo need root, and leave the machine as it was.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build setup clients test race kill-rounds histories check lint generate demo bench bench-registry bench-agents clean help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := bin/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)

# The version is given by the linker: a build does not need the repository, nor git's trust in its owner. Tests are built with
# -trimpath like the program, so that both share one build cache.
export GOFLAGS := -buildvcs=false -trimpath $(GOFLAGS)
export CGO_ENABLED ?= 0
export PATH := $(PATH):/usr/sbin:/sbin

TESTFLAGS ?= -timeout=10m
PACKAGES ?= ./...

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## build bin/fairlead, one static file
	CGO_ENABLED=0 go build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/fairlead ./cmd/fairlead

setup: ## install the missing Debian packages (as root; else print the command)
	@scripts/setup.sh

clients: setup ## bring the programs that tests run as clients (bin/clients)
	@scripts/clients.sh

test: clients ## run all tests
	@mkdir -p bin
	@scripts/leakcheck before bin/before-test
	@failed=0; \
	go test $(TESTFLAGS) $(PACKAGES) || failed=1; \
	scripts/leakcheck after bin/before-test || failed=1; \
	exit $$failed

race: clients ## run all tests with the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout=20m $(PACKAGES)

ROUNDS ?= 50

kill-rounds: ## kill an agent ROUNDS times in the middle of writes; all that it acknowledged must be there
	FAIRLEAD_KILL_ROUNDS=$(ROUNDS) go test -count=1 -timeout=30m -v -run='^TestKilledAgent' ./internal/compat

histories: ## check what clients see of keys and locks for LENGTH seconds while servers are killed and paused
	FAIRLEAD_HISTORY_SECONDS=$(or $(LENGTH),1800) go test -count=1 -timeout=60m -v -run='^TestHistoriesAreLinearizable' ./internal/story

check: setup lint ## everything that must hold before a commit: form, linters, generated code, tests
	scripts/check-generated.sh
	$(MAKE) test

lint: $(GOLANGCI_LINT)
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*')); \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	go mod tidy -diff
	go vet ./...
	$(GOLANGCI_LINT) run

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv bin/tools/golangci-lint $@

generate: setup ## make the generated files again (eBPF objects and their Go bindings)
	go generate ./...

demo: setup build ## show one host, one network and a balanced service, in namespaces of its own
	@mkdir -p bin
	@scripts/leakcheck before bin/before-demo
	@failed=0; \
	bin/fairlead demo || failed=1; \
	scripts/leakcheck after bin/before-demo || failed=1; \
	exit $$failed

bench: setup ## run the benchmarks
	go test -run='^$$' -bench=. -benchtime=$(or $(BENCHTIME),1s) -timeout=20m ./bench/...

bench-registry: ## measure the registry under load; BENCHFLAGS=--quick for a minute, --target for peers (bench/registry/doc.go)
	go run ./bench/registry $(BENCHFLAGS)

bench-agents: ## measure a site of three servers and 1,000 agents; BENCHFLAGS="--agents 100" for fewer
	go run ./bench/agents $(BENCHFLAGS)

clean: ## remove what was built
	rm -rf bin dist

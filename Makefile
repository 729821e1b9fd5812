# Portolan. `make` alone lists the targets.

GO       ?= go
CACHE    ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/portolan
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
DATA     ?= data
FUZZTIME ?= 1m
FUZZ     ?= .
GOLANGCI := $(CACHE)/tools/golangci-lint
export CACHE FUZZTIME FUZZ

.PHONY: help build run check test fuzz linear oracle bench bench-control bench-rules bench-bootstrap bench-wan bench-wan-figures micro lint proto tools clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the one binary, bin/portolan
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/portolan ./cmd/portolan

run: build ## start a mesh of three sites on this machine (data in ./data, Ctrl-C stops it)
	./bin/portolan dev --sites 3 --data $(DATA)

check: lint ## vet, linters and short tests with the race detector
	$(GO) vet ./...
	cd test/oracle && $(GO) vet ./...
	$(GO) test -race -short ./...

test: tools ## everything: unit tests, and whole meshes with real clients
	test/run

linear: ## edits and strict reads under faults for longer, searched for an order (BENCH="-for 10m -seed 42")
	$(GO) test -count=1 -timeout 3h -run '^TestLinearizable' -v ./test/linear -args $(or $(BENCH),-for 3m)

oracle: ## compare answers with those of distribution's handlers, each difference explained
	cd test/oracle && $(GO) vet ./... && $(GO) test -count=1 -v ./...

bench: build ## compare with distribution: tables, and test/bench/results (BENCH=-quick: in minutes)
	test/tools peers
	$(GO) run ./test/bench $(BENCH)

bench-wan: ## transfers over an emulated WAN beside their targets, as root (BENCH="-wan.rounds 1 -wan.run cold")
	test/tools clients
	$(GO) test -count=1 -timeout 2h -run '^TestBenchWAN$$' -v ./test/mesh -wan.bench -wan.out $(CURDIR)/test/bench/results/wan.json $(BENCH)

bench-wan-figures: ## how accurate the emulated WAN is on this machine (as root, when it is quiet)
	$(GO) test -count=1 -run '^TestFigures$$' -v ./test/wan -wan.figures

bench-control: ## the control plane over slow links beside its targets, some of it as root (BENCH=-quick, BENCH='-run soak')
	$(GO) run ./test/bench/control -out $(CURDIR)/test/bench/results/control.json $(BENCH)

bench-rules: ## a full pass of the rules over 1,000,000 artifacts (BENCH="-pass.artifacts=100000")
	$(GO) test -run '^$$' -bench FullPass -benchtime 3x -timeout 2h ./transfer -pass.artifacts=1000000 -pass.out=$(CURDIR)/test/bench/results/rules.json $(BENCH)

bench-bootstrap: ## a new site takes 1,000,000 catalogue entries in (BENCH="-bootstrap.entries=100000")
	$(GO) test -run '^$$' -bench Bootstrap -benchtime 1x -timeout 1h ./transfer -bootstrap.entries=1000000 -bootstrap.out=$(CURDIR)/test/bench/results/bootstrap.json $(BENCH)

fuzz: ## every fuzz target for FUZZTIME each, one after the other (FUZZ=swarm: of such packages)
	test/fuzz

micro: ## Go's own benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./node/... ./transfer/... ./consensus/... ./registryapi/...

lint: ## golangci-lint with .golangci.yml
	test/tools lint
	$(GOLANGCI) run ./...

proto: ## generate the protobuf code anew
	test/tools proto

tools: ## install what the tests need (packages as root; Go tools into the cache)
	test/tools clients

clean: ## remove what was built
	rm -rf bin

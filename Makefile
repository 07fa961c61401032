# What there is to do; `make help` lists it.
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Regenerating with another clang gives other bytes: CI compares.
CLANG ?= clang-19
STRIP ?= llvm-strip-19
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
GO ?= go
ARGS ?= --by project
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build iotrace-bpf; needs nothing but Go
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o iotrace-bpf ./cmd/iotrace-bpf

.PHONY: run
run: build ## build it and say who does the I/O (ARGS="--by project")
	$(SUDO) ./iotrace-bpf $(ARGS)

.PHONY: generate
generate: ## make the BPF objects and their Go types from the C sources
	vmtests/deps.sh build
	cd bpf && BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(STRIP) BPF2GO_CFLAGS="-I/usr/include/$$(uname -m)-linux-gnu" $(GO) generate .

.PHONY: generate-check
generate-check: generate ## fail if the committed objects are not what the sources give
	git diff --exit-code --stat -- bpf

.PHONY: readme
readme: ## put the help text into README.md
	$(GO) run ./cmd/iotrace-bpf help | awk 'NR == FNR { help = help $$0 "\n"; next } \
		/^```text$$/ { print; printf "%s", help; skip = 1; next } /^```$$/ { skip = 0 } !skip' - README.md > README.new
	mv README.new README.md

.PHONY: lint
lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet -tags 'integration vm' ./...
	$(GO) tool staticcheck -tags 'integration vm' ./...

.PHONY: unit
unit: ## the tests that need neither root nor anything installed
	$(GO) test ./...

.PHONY: integration
integration: ## the tests on this machine: real engines, servers, disks; needs root
	vmtests/deps.sh test
	$(SUDO) env "PATH=$$PATH" $(GO) test -p 1 -count=1 -timeout 30m -tags integration ./...

.PHONY: vmtest
vmtest: ## the kernel matrix in QEMU (KERNEL=6.12 RUN=nfs for one)
	vmtests/deps.sh test
	$(SUDO) env "PATH=$$PATH" $(GO) test -count=1 -timeout 80m -tags vm ./vmtests $(if $(RUN),-run '(?i)^Test.*$(RUN)') -v -args $(if $(KERNEL),-kernel $(KERNEL))

.PHONY: vmtest-shell
vmtest-shell: ## a shell in a guest with the tracer in it (KERNEL=7.3)
	vmtests/deps.sh test
	$(SUDO) env "PATH=$$PATH" $(GO) test -count=1 -timeout 0 -tags vm ./vmtests -run '^TestShell$$' -v -args -shell $(if $(KERNEL),-kernel $(KERNEL))

.PHONY: fuzz
fuzz: ## every fuzz test for a short time (FUZZTIME=10s)
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(FUZZTIME),10s) $$p; done; done

.PHONY: test
test: ## every test there is
	$(MAKE) generate-check
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) integration
	$(MAKE) vmtest
	$(MAKE) fuzz FUZZTIME=5s

.PHONY: clean
clean: ## remove what was built
	rm -f iotrace-bpf

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
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

.PHONY: man
man: ## make the manual page, build/iotrace-bpf.1, with the flags that help shows
	mkdir -p build
	$(GO) run ./cmd/iotrace-bpf help flags > build/flags.txt
	awk -f packaging/manual.awk build/flags.txt packaging/iotrace-bpf.1.in > build/iotrace-bpf.1

.PHONY: package
package: ## make what a release has, in build/package: deb, rpm, tarballs, SBOM, checksums
	packaging/package.sh "$(VERSION)" build/package

.PHONY: image
image: ## make the container image iotrace-bpf:VERSION, with the docker command (IMAGE=name)
	packaging/image.sh "$(VERSION)" $(IMAGE)

.PHONY: pictures
pictures: ## make the pictures in docs from a replay of docs/incident.rec
	vmtests/deps.sh test
	$(GO) test -count=1 -tags pictures -run '^TestPictures$$' ./cmd/iotrace-bpf

.PHONY: lint
lint: ## gofmt, vet, staticcheck, gosec, actionlint
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet -tags 'integration vm bench pictures' ./...
	$(GO) tool staticcheck -tags 'integration vm bench pictures' ./...
	$(GO) run $(GOSEC) -quiet -exclude-generated -exclude $(GOSEC_OFF) -exclude-dir testdata -exclude-dir vmtests -exclude-dir testserver -exclude-dir enginetest -exclude-dir outputtest ./...
	$(GO) run $(ACTIONLINT)

ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
GOSEC := github.com/securego/gosec/v2/cmd/gosec@v2.22.9
# Left out, and why: G104 errors of Close on the way out of another error; G115
# conversions between the widths of C and Go, bounded where they are made; G304
# and G204 files and commands that the user's own flags name; G103 unsafe: the
# kernel's interfaces (ring records, capset).
GOSEC_OFF := G104,G115,G304,G204,G103

.PHONY: vulncheck
vulncheck: ## known vulnerabilities in what is linked in; needs vuln.go.dev
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.1.4 ./cmd/iotrace-bpf

.PHONY: unit
unit: ## the tests that need neither root nor anything installed (the others include them)
	$(GO) test ./...

.PHONY: race
race: ## tracer's unit tests with the race detector; needs root and gcc
	$(SUDO) env "PATH=$$PATH" CGO_ENABLED=1 $(GO) test -race ./tracer/...

# What "make test" says at its end of the tests that ran a second time.
EVENTS = build/again/integration.json
GUESTS = build/again/guests.json

.PHONY: integration
integration: ## the tests on this machine: real engines, servers, disks; needs root (RERUN=3 reruns up to 3 failed tests)
	vmtests/deps.sh test
	@mkdir -p $(dir $(EVENTS))
	$(SUDO) env "PATH=$$PATH" $(if $(RERUN),$(GO) run $(GOTESTSUM) --format pkgname --rerun-fails=1 --rerun-fails-max-failures=$(RERUN) --jsonfile $(EVENTS) --packages ./... --,$(GO) test) \
		-p 1 -count=1 -timeout 30m -tags integration $(if $(RERUN),,./...)

.PHONY: soak
soak: ## half an hour of churn: containers, cgroups, disks, mounts, restarts of an engine; needs root (SOAK=30m)
	$(SUDO) env "PATH=$$PATH" SOAK=$(or $(SOAK),30m) $(GO) test -count=1 -timeout 0 -tags integration -run '^TestChurn$$' -v ./cmd/iotrace-bpf

GOTESTSUM := gotest.tools/gotestsum@v1.13.0

# Guests at once: one more than processors, because some wait for a while.
JOBS ?= $(shell expr $$(nproc) + 1)
VMTEST = $(SUDO) env "PATH=$$PATH" $(GO) test -count=1 -tags vm -parallel $(JOBS) ./vmtests

.PHONY: vmtest
vmtest: ## the kernel matrix in QEMU (KERNEL=6.12 RUN=nfs for one, QUICK=1 for the main scenarios, JOBS=3 guests at once, RERUN=3 reruns up to 3 guests with failures)
	vmtests/deps.sh test
	@mkdir -p $(dir $(GUESTS))
	$(VMTEST) -timeout 180m $(if $(RUN),-run '(?i)^Test.*$(RUN)') -v -args $(if $(KERNEL),-kernel $(KERNEL)) $(if $(QUICK),-quick) $(if $(RERUN),-rerun $(RERUN) -rerun-report $(CURDIR)/$(GUESTS))

.PHONY: vmtest-arm64
vmtest-arm64: ## the matrix's scenarios on an arm64 guest, with the cross-built program (RUN, QUICK as above)
	$(MAKE) vmtest KERNEL=6.12-arm64

# go test gives its tests no standard input: a shell needs the program itself.
.PHONY: vmtest-shell
vmtest-shell: ## a shell in a guest with the tracer in it (KERNEL=7.3), on this terminal or from a pipe
	vmtests/deps.sh test
	$(GO) test -c -tags vm -o build/vmtests.test ./vmtests
	cd vmtests && $(SUDO) env "PATH=$$PATH" ../build/vmtests.test -shell $(if $(KERNEL),-kernel $(KERNEL))

.PHONY: vagrant-programs
vagrant-programs: ## what the Vagrantfile's boxes run
	CGO_ENABLED=0 $(GO) build -o build/iotrace-bpf ./cmd/iotrace-bpf
	CGO_ENABLED=0 $(GO) test -c -tags vm -o build/vmtests.test ./vmtests

.PHONY: bench
bench: build ## compare with other tools; writes BENCHMARKS.md (ROUNDS=5)
	vmtests/deps.sh bench
	@# bpftrace looks for tracepoints there and does not mount it.
	mountpoint -q /sys/kernel/tracing || $(SUDO) mount -t tracefs tracefs /sys/kernel/tracing
	$(SUDO) env "PATH=$$PATH" ROUNDS=$(ROUNDS) $(GO) test -count=1 -timeout 60m -tags 'integration bench' -run '^TestBench$$' -v ./cmd/iotrace-bpf
	$(SUDO) env "PATH=$$PATH" $(GO) test -count=1 -tags integration -run '^$$' -bench . -benchtime 30x ./tracer

.PHONY: bench-cluster
bench-cluster: ## a day of 40 hosts in Elasticsearch, and its questions; writes BENCHMARKS.md (HOURS=24)
	vmtests/deps.sh test
	$(SUDO) env "PATH=$$PATH" HOURS=$(HOURS) ROUNDS=$(ROUNDS) $(GO) test -count=1 -timeout 170m -tags 'integration bench' -run '^TestBenchCluster$$' -v ./cmd/iotrace-bpf

.PHONY: bench-vm
bench-vm: ## the same in guests: peers that need kprobes, network file systems, more processors (KERNEL=6.12)
	vmtests/deps.sh test
	$(SUDO) env "PATH=$$PATH" $(GO) test -count=1 -timeout 100m -tags 'vm bench' -run '^TestBench$$' -v ./vmtests -args -kernel $(or $(KERNEL),6.12)

# Inputs, not seconds: the fuzzer may take the end of its own time for a failure
# (golang/go#75804). The slow ones, files and pages, get a part of the inputs, so
# that each takes about as long as the others, and answers that a library decodes too.
.PHONY: fuzz
fuzz: ## every fuzz test with many inputs (FUZZTIME=80000x)
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			n=$(or $(FUZZTIME),80000x); \
			case $$f:$$n in FuzzRecording:*x | FuzzReply:*x | FuzzSearchReply:*x) n=$$(($${n%x} / 5))x ;; FuzzReport:*x) n=$$(($${n%x} / 20))x ;; esac; \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $$n -fuzzminimizetime 20x $$p; done; done

# The lines of the matrix that a run of everything boots: the oldest, with both cgroup
# versions, Debian's stable one and the newest. All eleven take twice as long, which a
# slow machine without KVM does not finish in an hour and a half.
LINES ?= 5.10,6.12,7.3

.PHONY: test
test: ## every test there is, of the kernel matrix the main scenarios on three kernels (LINES= for all)
	@mkdir -p build/again && rm -f $(EVENTS) $(GUESTS)
	@status=0; $(MAKE) every-test || status=$$?; $(GO) run ./vmtests/again build/again/history $(EVENTS) $(GUESTS); exit $$status

.PHONY: every-test
every-test:
	$(MAKE) generate-check
	$(MAKE) lint
	$(MAKE) race
	$(MAKE) integration RERUN=3
	$(MAKE) vmtest QUICK=1 RERUN=3 KERNEL=$(LINES)
	$(MAKE) fuzz FUZZTIME=40000x

.PHONY: clean
clean: ## remove what was built
	rm -rf iotrace-bpf build

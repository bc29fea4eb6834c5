# All that is needed to build, test and show nestdbg. "make help" lists it.

GO      ?= go
FUZZTIME ?= 30s

# nestdbg has to be a static program: the lab runs it as init of its machines.
# Tests are built in the same way, so that there is one build cache.
export CGO_ENABLED = 0

# Tests that boot machines are in two packages; everything else is a unit test. Those in Bochs,
# which has VMX, are quick as far as they are of the monitor.
LAB_TESTS   = ./lab/tests
BOCHS_TESTS = ./lab/bochstests

# QEMU and gdb of this suite of Debian are downloaded, not installed. What depends on them
# is tested with them too. Comparing 500 stops only there: both lose some of the guests that
# are stopped so often, and one such test is enough.
SUITE       = trixie
SUITE_UNITS = ./internal/qemu ./internal/memfile ./internal/gdbserver
SUITE_TESTS = StatusAgreesWithTheGuests|OneCPUIsInOneLayer|EveryLayerIsConsistent|StepsStayInLayer|ForeignHits|$\
	WatchpointPerMachine|TrapsOfEveryKind|GDBSessions|TaskThreads|BothRoadsToEveryPage|EveryByteOfThePattern|$\
	OfflineAnswersAsTheMachine|WatchEvents|UnwindStops
unit_tests  = $$($(GO) list ./... | grep -vE '/lab/(bochs)?tests$$')

START := $(shell date +%s)
took   = @echo "make $@: done in $$(( $$(date +%s) - $(START) )) s"

.DEFAULT_GOAL := help
.PHONY: help deps build test test-kernels test-bochs demo check fmt-check vet unit race bench fuzz clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

deps: ## Install from Debian what is missing here, and say what
	@scripts/deps

build: deps ## Build bin/nestdbg
	$(GO) build -trimpath -o bin/nestdbg ./cmd/nestdbg

test: build check ## Everything: formatting, vet, unit tests, tests on real nested guests
	@scripts/deps bochs
	$(GO) test -count=1 -run '^TestMonitor' $(BOCHS_TESTS)
	@GO='$(GO)' $(GO) run ./lab/labtests $(LAB_TESTS) -skip '^TestUnwindStops$$'
	@GO='$(GO)' $(GO) run ./lab/labtests -programs $(SUITE) $(SUITE_UNITS)
	@GO='$(GO)' $(GO) run ./lab/labtests -programs $(SUITE) $(LAB_TESTS) -run '^Test($(SUITE_TESTS))$$'
	$(took)

test-kernels: build ## Stacks of other kernels against gdb: a gigabyte to download
	@GO='$(GO)' $(GO) run ./lab/labtests $(LAB_TESTS) -run '^TestUnwindStops$$' -unwind=5.10,6.12,7.2
	$(took)

test-bochs: build ## All that needs VMX, in Bochs: Linux boots for minutes there
	@scripts/deps bochs
	$(GO) test -count=1 -v -timeout 40m $(BOCHS_TESTS)
	$(took)

demo: build ## Boot a nested guest, debug it with gdb, end it
	@bash lab/demo.sh
	$(took)

check: fmt-check vet unit ## The quick part of test: formatting, vet, unit tests

fmt-check:
	@bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "not formatted (gofmt -w): $$bad" >&2; exit 1; }

vet:
	$(GO) vet ./...

unit: deps
	$(GO) test $(unit_tests)

race: deps ## Unit tests under the race detector
	CGO_ENABLED=1 $(GO) test -race $(unit_tests)

bench: build ## Benchmarks of the packages, then figures on a real nested guest
	$(GO) test -run='^$$' -bench=. $(unit_tests)
	$(GO) run ./lab/bench
	$(took)

fuzz: ## Run every fuzz target for FUZZTIME (30s)
	@GO='$(GO)' scripts/fuzz $(FUZZTIME)
	$(took)

clean: ## Remove what was built
	rm -rf bin

# One entry point for everything. `make up` and `make test` are all a new user needs.
#
# s3s declares a newer rustc than it uses, hence --ignore-rust-version everywhere.
# Build output goes to $CARGO_TARGET_DIR, or ./target.

SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
BUILD := --release --locked --ignore-rust-version
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),$(CURDIR)/target)
DATA ?= $(CURDIR)/janusfs-data
PACKAGES := build-essential libclang-dev cmake pkg-config fuse3 attr

# External tests that leave the topology to JANUSFS_TEST_TOPOLOGY.
REPLICATED := s3_sdk posix_mount bad_input

.PHONY: help deps build up test test-replicated bench compat soak check

help: ## Lists the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

deps: ## Installs the Debian or Ubuntu packages that the build needs and lacks.
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then S=; else S=sudo; fi; \
	  echo "installing:$$missing"; \
	  $$S apt-get update -qq && $$S env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; fi
	@command -v $(CARGO) >/dev/null || { echo "error: cargo is missing: install Rust 1.95 or later (rustup.rs), then run this again" >&2; exit 2; }

build: deps ## Builds the janusfs binary.
	$(CARGO) build $(BUILD) --bin janusfs

up: build ## Runs JanusFS on this machine: both doors, mounted under ./janusfs-data/mnt.
	@mkdir -p $(DATA)/mnt
	$(TARGET)/release/janusfs up --data $(DATA) --mount $(DATA)/mnt

test: deps ## Runs every test, the lints and the documentation build.
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(BUILD) --workspace --all-targets -- -D warnings
	$(CARGO) build $(BUILD) --bin janusfs
	$(CARGO) test $(BUILD) --workspace
	$(MAKE) test-replicated
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(BUILD) --workspace --no-deps --quiet

test-replicated: deps ## Runs the external tests on three targets and three replicas.
	$(CARGO) build $(BUILD) --bin janusfs
	JANUSFS_TEST_TOPOLOGY=3x3 $(CARGO) test $(BUILD) --workspace $(addprefix --test ,$(REPLICATED))

compat: build ## Runs foreign suites: PJDFSTEST=<dir> and S3TESTS=<dir>, as root.
	compat-tests/external/foreign.sh $(TARGET)/release/janusfs "$(PJDFSTEST)" "$(S3TESTS)"

# Rounds of each kind of crash, half on one target and half on three replicas.
ROUNDS ?= 200
SEED ?= $(shell date +%s)

soak: deps ## Crash-tests the node: 200 rounds of kill -9 and 200 power cuts (ROUNDS, SEED).
	$(CARGO) build $(BUILD) --bin janusfs
	JANUSFS_CRASH_ROUNDS=$$(( ($(ROUNDS) + 1) / 2 )) JANUSFS_SEED=$(SEED) \
	  $(CARGO) test $(BUILD) -p janusfs-external --test crash -- --nocapture --test-threads 1

bench: build ## Measures speed against what this machine could do at best (README, "Speed"), then the small parts.
	$(TARGET)/release/janusfs bench all
	$(CARGO) bench --locked --ignore-rust-version \
	  -p janusfs-chain-engine -p janusfs-wire -p janusfs-client -p janusfs-kv --bench crc --bench codec --bench plan --bench commit

check: deps ## Formats, lints; the quick round before a commit.
	$(CARGO) fmt --all
	$(CARGO) clippy $(BUILD) --workspace --all-targets -- -D warnings


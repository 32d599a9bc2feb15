# Everything a contributor runs. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export CARGO_TARGET_DIR ?= $(HOME)/.cache/quorate/target
DEV := $(CARGO_TARGET_DIR)/debug

.PHONY: help setup demo dev test check build bench conformance chaos chaos-full sim

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make this machine able to build: compiler check, RocksDB once, cargo settings
	@deploy/setup.sh

demo: setup ## Three nodes and five agents review this repository while a node and an agent are killed
	cargo build --locked -p quorate -p quorate-jepsen --bins
	$(DEV)/quorate-demo

dev: setup ## One node on loopback, data thrown away at exit
	cargo build --locked -p quorate --bins
	$(DEV)/quorate dev

# The server binary first: the harness starts it as a process, and cargo builds no binary of another package for a test.
test: setup ## All tests: unit, component, whole clusters
	cargo build --locked --workspace --bins
	@if cargo nextest --version >/dev/null 2>&1; then \
	  set -x; cargo nextest run --workspace --locked; \
	else \
	  set -ex; cargo test --workspace --locked --exclude quorate-jepsen --lib --bins --tests; \
	  cargo test --locked -p quorate-jepsen --lib --bins --tests -- --test-threads=1; \
	fi
	cargo test --workspace --locked --doc

check: setup ## Format, lints, documentation, licences; changes nothing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	@if cargo deny --version >/dev/null 2>&1; then \
	  set -x; cargo deny --locked check bans licenses sources; \
	else \
	  echo "check: cargo-deny is not installed, so bans, licences and sources were not checked"; \
	fi

chaos: setup ## Faults against a real cluster, judged: about four minutes (root for all of it)
	cargo build --locked -p quorate -p quorate-jepsen --bins
	$(DEV)/quorate-jepsen chaos --time 30

# Every nemesis with every workload, every planted bug, and a thousand simulated clusters.
chaos-full: setup sim ## Everything that the harness can do: about an hour (root)
	cargo build --locked -p quorate -p quorate-jepsen --bins
	$(DEV)/quorate-jepsen matrix --time 45
	cargo build --locked -p quorate --bins --features faults
	cp $(DEV)/quorate $(DEV)/quorate-faults
	$(DEV)/quorate-jepsen bugs --server $(DEV)/quorate-faults --time 15
	cargo build --locked -p quorate --bins

sim: setup ## A thousand simulated clusters, each from a seed
	cargo build --release --locked --manifest-path jepsen/sim/Cargo.toml
	$(CARGO_TARGET_DIR)/release/quorate-sim --seeds 1..1001

conformance: setup ## A client generated for Python against one node (needs PyPI)
	cargo build --locked -p quorate --bins
	client/python/run.sh $(DEV)/quorate

build: setup ## Release binaries
	cargo build --release --locked -p quorate --bins

bench: setup ## Release build, then every benchmark
	cargo build --release --locked --workspace --bins
	$(CARGO_TARGET_DIR)/release/quorate-bench lifecycle
	$(CARGO_TARGET_DIR)/release/quorate-bench bus
	$(CARGO_TARGET_DIR)/release/quorate-bench locks
	$(CARGO_TARGET_DIR)/release/quorate-bench kv
	$(CARGO_TARGET_DIR)/release/quorate-bench watch
	$(CARGO_TARGET_DIR)/release/quorate-bench sessions
	$(CARGO_TARGET_DIR)/release/quorate-bench failover

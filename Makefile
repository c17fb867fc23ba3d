# `make up` starts a real stack with Slipway, `make test` runs all checks and tests. Both install missing packages.
# SLIPWAY_STACK names the stack (default: `default`); several can run side by side. SLIPWAY_FAASD, SLIPWAY_GATEWAY and
# SLIPWAY_FAAS_CLI name binaries to use instead of the stack's own (docs/local-stack.md).

stack := cargo run --quiet --locked --package slipway-stack --
# The workspace of a new function.
template := --manifest-path target/template/Cargo.toml
# The tests start these functions and the command as processes. They are compiled before, so that no compiler runs beside tests.
functions = for function in builder-fn deployer-fn slipway; do \
	cargo build --quiet --locked --package $$function --profile "$${SLIPWAY_BUILDER_PROFILE:-dev}" || exit 1; done

.PHONY: help up down purge env cluster cluster-down cluster-test cluster-short static status test check unit chart e2e hostile faas-netes soak locks fuzz bench bench-host bench-contexts bench-flood

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

up: ## start a real stack with Slipway, build and call a sample function
	@tests/host-archive
	@$(stack) up

down: ## stop the stack; keep its data for a quick restart
	@$(stack) down

purge: ## stop the stack and remove its data: build cache, images, credentials
	@$(stack) down --purge

env: static ## build the command slipway, and print the stack's environment variables: eval "$(make env)"
	@$(stack) env
	@echo "export PATH='$(CURDIR)/target/bin':\"\$$PATH\""

cluster: ## start a one-node Kubernetes for tests and print its environment: eval "$(make cluster)"
	@$(stack) cluster up

cluster-down: ## stop the Kubernetes for tests and remove its data
	@$(stack) cluster down

cluster-test: ## test a Kubernetes of its own: pods, network policies, the chart, attacks, and versions that do not run
	cargo test --locked --package slipway-stack --test cluster -- --nocapture --test-threads 1

cluster-short: ## install the chart on a Kubernetes of its own, and build and deploy a function there
	cargo test --locked --package slipway-stack --test cluster -- in_a_cluster

static: ## build the command slipway as one statically linked program, target/bin/slipway; COMMAND_PROFILE=release optimises it
	@tests/static-command "$${COMMAND_PROFILE:-dev}" target/bin

status: ## show the state of the stack's parts
	@$(stack) status

test: check unit chart e2e hostile ## run all checks and tests; needs no preparation

check: ## check format, lints, the archive with the host, lock files and licences
	@$(stack) packages
	tests/host-archive --check
	tests/lay-out template/rust-hyper/function target/template
	cargo fmt --check
	cargo fmt --check --package function $(template)
	cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	cargo clippy --quiet --locked --package slipway-stack --test cluster -- -D warnings
	cargo clippy --quiet --locked --package function-host --all-targets -- -D warnings
	cargo clippy --quiet --locked --workspace --all-targets $(template) -- -D warnings
	cargo clippy --quiet --locked --package function-host --all-features $(template) -- -D warnings
	tests/handler-locks --check
	cargo update --quiet --locked --workspace --manifest-path fuzz/Cargo.toml
	tests/licences

unit: ## run all tests that need no stack
	@$(stack) packages --tests
	cargo test --quiet --locked --workspace --exclude slipway-e2e --exclude slipway-faas-netes
	$(MAKE) --no-print-directory static
	cargo test --quiet --locked --package slipway-e2e --lib --bins
	cargo test --quiet --locked --package function-host

chart: ## render the Helm chart with many values and check the manifests
	@tools=$$($(stack) tool helm) && promtool=$$($(stack) promtool) && HELM=$$tools/helm \
		STRICT_MANIFESTS=$$tools/strict-manifests PROMTOOL=$$promtool tests/chart.sh

e2e: ## run the end-to-end tests on the stack; start it if it does not run
	@$(stack) packages --tests
	@tests/host-archive
	@$(stack) up
	@$(functions)
	cargo test --locked --package slipway-e2e --test e2e

hostile: ## run the hostile builds and senders on the stack; start it if it does not run
	@$(stack) packages --tests
	@tests/host-archive
	@$(stack) up
	@$(functions)
	cargo test --locked --package slipway-e2e --test hostile

faas-netes: ## compare the provider on Kubernetes with the table of what faas-netes answers
	@$(stack) packages --tests
	etcd=$$($(stack) tool etcd) && kubernetes=$$($(stack) tool kubernetes) && \
		SLIPWAY_KUBERNETES_BIN="$$etcd:$$kubernetes" cargo test --locked --package slipway-faas-netes

soak: ## run queued builds while parts fail, on a stack of its own: SOAK_FAULTS, SOAK_SUBMISSIONS, SOAK_FUNCTIONS
	@$(stack) packages --tests
	@$(functions)
	cargo run --locked --package slipway-e2e --bin soak

locks: ## update the lock files of the functions and of the template, and the template's archive with the host
	tests/host-archive
	tests/handler-locks

fuzz: ## fuzz all parsers, FUZZ_SECONDS (default: 60) for each
	fuzz/run

bench: ## measure Slipway as deployed, against buildctl and faas-cli, on the running stack: BENCH_ROUNDS, BENCH_ONLY
	cargo run --profile function --locked --package slipway-e2e --bin bench

bench-host: ## compare the function host with a plain hyper server
	cargo run --profile function --locked --package slipway-bench-host

bench-contexts: ## compare builder-fn with buildctl, from context to pushed image, on the running stack
	SLIPWAY_BUILDER_PROFILE=function cargo run --profile function --locked --package slipway-e2e --bin bench-contexts -- --folder "$$(rustc --print sysroot)"

bench-flood: ## measure signed builds, memory and processor time beside 2,000 unsigned senders, on the running stack
	cargo run --profile function --locked --package slipway-e2e --bin bench-flood

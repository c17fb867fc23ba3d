# `make up` starts the real stack with Slipway on it, `make test` runs every check and test. Both install what is missing.
# SLIPWAY_STACK names the stack (`default` where unset): several can run side by side. SLIPWAY_FAASD, SLIPWAY_GATEWAY and
# SLIPWAY_FAAS_CLI name binaries to take in place of the stack's own (docs/local-stack.md).

stack := cargo run --quiet --locked --package slipway-stack --
template := --manifest-path template/rust-hyper/Cargo.toml

.PHONY: help up down purge env status test check unit chart e2e locks fuzz bench-host bench-contexts

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

up: ## a real stack, Slipway on it, and a sample from source to its answer
	@$(stack) up

down: ## stop the stack; its data stays, so that the next start is quick
	@$(stack) down

purge: ## stop the stack and remove its data: build cache, images, credentials
	@$(stack) down --purge

env: ## what a shell needs to use the stack: eval "$(make env)"
	@$(stack) env

status: ## how the stack's parts are
	@$(stack) status

test: check unit chart e2e ## every test, on a machine where nothing has been prepared

check: ## format, lints, the handlers' lock files, licences
	@$(stack) packages
	cargo fmt --check
	cargo fmt --all --check $(template)
	cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	cargo clippy --quiet --locked --workspace --all-targets $(template) -- -D warnings
	cargo clippy --quiet --locked --package function-host --all-features --all-targets $(template) -- -D warnings
	tests/handler-locks --check
	tests/licences

unit: ## every test that needs no stack
	@$(stack) packages
	cargo test --quiet --locked --workspace --exclude slipway-e2e
	cargo test --quiet --locked --workspace $(template)
	cargo test --quiet --locked --package function-host --all-features $(template)

chart: ## render the Helm chart with many values
	@tools=$$($(stack) tool helm) && HELM=$$tools/helm STRICT_MANIFESTS=$$tools/strict-manifests tests/chart.sh

e2e: ## the end-to-end tests, on the stack, which is started where it does not run
	@$(stack) packages --tests
	@$(stack) up
	cargo test --locked --package slipway-e2e

locks: ## write the lock files of builder-fn and deployer-fn anew
	tests/handler-locks

fuzz: ## look for input that breaks a parser, FUZZ_SECONDS (60) for each of them
	fuzz/run

bench-host: ## what the function host costs, against a plain hyper server
	cargo run --profile function --locked --package slipway-bench-host

bench-contexts: ## what builder-fn takes from source to pushed image, against buildctl, on the running stack
	SLIPWAY_BUILDER_PROFILE=function cargo run --profile function --locked --package slipway-e2e --bin bench-contexts -- --folder "$$(rustc --print sysroot)"

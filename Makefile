# `make up` starts the real stack with Slipway on it, `make test` runs every check and test. Both install what is missing.
# A stack is named by SLIPWAY_STACK; without it, it is the default one.

stack := cargo run --quiet --locked --package slipway-stack --

.PHONY: up down purge env status test

up:
	@$(stack) up

down:
	@$(stack) down

# As down, and its data (build cache, images, credentials) too.
purge:
	@$(stack) down --purge

# eval "$(make env)": what a shell needs to use the stack with ordinary tools.
env:
	@$(stack) env

status:
	@$(stack) status

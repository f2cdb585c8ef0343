# The few commands worth a name. Each is a script or one cargo call; read them there.
.PHONY: demo test check cluster

demo: ## pack, serve and compare a folder on embedded defaults
	cargo run -- demo

test: ## install what the tests need, run all of them
	scripts/test

check: ## format, lints, dependency rules, deployment files
	scripts/check

cluster: ## a real cluster on this machine: Redis, SeaweedFS, three workers, one of them killed
	scripts/setup
	cargo build --locked --workspace --bins
	$${CARGO_TARGET_DIR:-target}/debug/cluster $(ARGS)

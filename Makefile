# The environment must be active: see "Tests" in README.md.
.PHONY: check test slow docs bench gpu

check:  ## lint, format, types, import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test:  ## all tests but the long ones
	pytest -n auto --maxprocesses 4 --dist loadfile

slow:  ## the long tests
	pytest -n auto --maxprocesses 4 --dist loadfile -m slow

docs:  ## build the pages, and fail on a broken link
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir build/site

bench:  ## what editing costs on this machine
	toedit bench

gpu:  ## figures and tests that need a GPU, at most 9 minutes
	.ci/gpu.sh

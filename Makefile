.PHONY: quality style test docs quickstart build

quality:  ## what must hold before a change is accepted
	ruff format --check .
	ruff check .
	mypy
	python tests/audit.py

style:  ## repair what can be repaired
	ruff check --fix .
	ruff format .

test:
	pytest

docs:  ## the pages in site/; any warning is an error
	python docs/stage.py build/docs
	zensical build --strict

quickstart:  ## every stage on a tiny model, on a CPU
	hf-tasksel run recipes/quickstart.yaml

build:  ## the sdist and the wheel in dist/, checked
	rm -rf build dist
	python -m build
	python -m twine check --strict dist/*

.PHONY: quality style test quickstart build

quality:  ## what must hold before a change is accepted
	ruff format --check .
	ruff check .
	mypy

style:  ## repair what can be repaired
	ruff check --fix .
	ruff format .

test:
	pytest

quickstart:  ## every stage on a tiny model, on a CPU
	hf-tasksel run recipes/quickstart.yaml

build:  ## the sdist and the wheel in dist/, checked
	rm -rf build dist
	python -m build
	python -m twine check --strict dist/*

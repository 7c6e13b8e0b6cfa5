.PHONY: quality style test docs quickstart build evidence-small evidence

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

evidence-small:  ## from kept truth files and three small runs; wants lightgbm
	python benchmarks/left_out.py
	python benchmarks/equal_cost.py
	python benchmarks/paper_costs.py
	python benchmarks/planted.py --seeds 0 1 2
	python benchmarks/tables.py

STUDIES = quickstart conflict instruct cot smol-instruct
evidence:  ## the studies anew, for a long time; goes on where it stopped; wants bergson, traker and dattri, too
	python benchmarks/smollm2_base.py
	python benchmarks/pretrain_base.py
	for study in $(STUDIES); do python benchmarks/fidelity.py train $$study || exit 1; done
	for study in $(STUDIES); do python benchmarks/defaults.py $$study || exit 1; done
	for study in quickstart conflict instruct cot; do python benchmarks/decisions.py $$study || exit 1; done
	for target in trec sst2 tweet_emotion; do python benchmarks/targets.py $$target || exit 1; done
	python benchmarks/ensemble.py $(STUDIES)
	python benchmarks/attribution.py quickstart conflict
	python benchmarks/attribution.py cot --tools bergson TRAK
	python benchmarks/forward.py cot
	python benchmarks/predictability.py
	python benchmarks/expansion.py
	python benchmarks/expansion.py --study smol-instruct
	$(MAKE) evidence-small

build:  ## the sdist and the wheel in dist/, checked
	rm -rf build dist
	python -m build
	python -m twine check --strict dist/*

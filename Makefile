# A thin layer over dev.py. ARGS goes through: make test ARGS="-k windows"
PYTHON ?= python3

.PHONY: demo test check fix setup
demo test check fix setup:
	@$(PYTHON) dev.py $@ $(ARGS)

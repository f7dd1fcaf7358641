"""Save a Secret block on the Prefect server: ``python -m tests.integration.save_block NAME VALUE``."""

import sys

from prefect.blocks.system import Secret

Secret(value=sys.argv[2]).save(sys.argv[1])

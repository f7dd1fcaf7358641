"""``python -m latentloom``."""

from latentloom.cli.main import main

if __name__ == "__main__":
    main()

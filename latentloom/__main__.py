"""``python -m latentloom``."""

from latentloom.cli import main

if __name__ == "__main__":
    main()

"""``python -m metaos`` is the ``nemo`` command."""

from metaos.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m whisperd`."""

from whisperd.cli import main

if __name__ == "__main__":
    main()

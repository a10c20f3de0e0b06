"""`python -m cli`, from a checkout: the command `reasoning`."""

from cli.main import main

if __name__ == "__main__":
    main()

"""`python -m demo_t2v` is the same program as `demo-t2v`."""

from demo_t2v.cli import main

if __name__ == "__main__":
    main()
